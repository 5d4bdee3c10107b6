//! The verbs. Each file has its flags and its code; here they are only named and called.

mod balance;
mod cat;
mod chmod;
mod chown;
mod cp;
mod datanode;
mod df;
mod down;
mod du;
mod find;
mod fsck;
mod get;
mod head;
mod info;
mod ln;
mod ls;
mod mkdir;
pub mod mount;
mod mv;
pub mod namenode;
mod put;
mod rm;
mod rmdir;
mod scrub;
mod setrep;
mod stat;
pub mod status;
mod tail;
mod test;
mod touch;
mod truncate;
mod umount;
pub mod up;
mod volume;
mod wait_healthy;
mod watch;

use std::time::Duration;

use clap::Subcommand;

use crate::context::Context;
use crate::error::Result;

#[derive(Subcommand, Debug)]
pub enum Verb {
    // The cluster.
    Up(up::Args),
    Down(down::Args),
    Status(status::Args),
    Fsck(fsck::Args),
    WaitHealthy(wait_healthy::Args),
    Watch(watch::Args),
    Mount(mount::Args),
    Umount(umount::Args),
    Namenode(namenode::Args),
    Datanode(datanode::Args),
    Scrub(scrub::Args),
    Volume(volume::Args),
    Balance(balance::Args),

    // Files.
    Ls(ls::Args),
    Put(put::Args),
    Get(get::Args),
    Cat(cat::Args),
    Head(head::Args),
    Tail(tail::Args),
    Cp(cp::Args),
    Mv(mv::Args),
    Rm(rm::Args),
    Mkdir(mkdir::Args),
    Rmdir(rmdir::Args),
    Ln(ln::Args),
    Touch(touch::Args),
    Truncate(truncate::Args),
    Stat(stat::Args),
    Test(test::Args),
    Find(find::Args),
    Du(du::Args),
    Df(df::Args),
    Chmod(chmod::Args),
    Chown(chown::Args),
    Setrep(setrep::Args),
    Info(info::Args),
}

impl Verb {
    /// A process that serves until it is told to stop, rather than a command.
    pub fn is_role(&self) -> bool {
        match self {
            Verb::Namenode(args) => args.is_role(),
            Verb::Datanode(args) => args.is_role(),
            Verb::Mount(args) => args.is_role(),
            _ => false,
        }
    }

    /// How long the verb gets after Ctrl-C to remove what it left half done.
    pub fn interrupt_grace(&self) -> Duration {
        match self {
            Verb::Put(_) | Verb::Get(_) | Verb::Cp(_) => Duration::from_secs(3),
            _ => Duration::ZERO,
        }
    }

    pub async fn run(self, context: &Context) -> Result {
        match self {
            Verb::Up(args) => up::run(context, args).await,
            Verb::Down(args) => down::run(context, args).await,
            Verb::Status(args) => status::run(context, args).await,
            Verb::Fsck(args) => fsck::run(context, args).await,
            Verb::WaitHealthy(args) => wait_healthy::run(context, args).await,
            Verb::Watch(args) => watch::run(context, args).await,
            Verb::Mount(args) => mount::run(context, args).await,
            Verb::Umount(args) => umount::run(context, args).await,
            Verb::Namenode(args) => namenode::run(context, args).await,
            Verb::Datanode(args) => datanode::run(context, args).await,
            Verb::Scrub(args) => scrub::run(context, args).await,
            Verb::Volume(args) => volume::run(context, args).await,
            Verb::Balance(args) => balance::run(context, args).await,
            Verb::Ls(args) => ls::run(context, args).await,
            Verb::Put(args) => put::run(context, args).await,
            Verb::Get(args) => get::run(context, args).await,
            Verb::Cat(args) => cat::run(context, args).await,
            Verb::Head(args) => head::run(context, args).await,
            Verb::Tail(args) => tail::run(context, args).await,
            Verb::Cp(args) => cp::run(context, args).await,
            Verb::Mv(args) => mv::run(context, args).await,
            Verb::Rm(args) => rm::run(context, args).await,
            Verb::Mkdir(args) => mkdir::run(context, args).await,
            Verb::Rmdir(args) => rmdir::run(context, args).await,
            Verb::Ln(args) => ln::run(context, args).await,
            Verb::Touch(args) => touch::run(context, args).await,
            Verb::Truncate(args) => truncate::run(context, args).await,
            Verb::Stat(args) => stat::run(context, args).await,
            Verb::Test(args) => test::run(context, args).await,
            Verb::Find(args) => find::run(context, args).await,
            Verb::Du(args) => du::run(context, args).await,
            Verb::Df(args) => df::run(context, args).await,
            Verb::Chmod(args) => chmod::run(context, args).await,
            Verb::Chown(args) => chown::run(context, args).await,
            Verb::Setrep(args) => setrep::run(context, args).await,
            Verb::Info(args) => info::run(context, args).await,
        }
    }
}

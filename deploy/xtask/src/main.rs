//! `cargo xtask`: the project's own commands. `demo` and `test` are the two that the README names.

mod bench;
mod demo;
mod fixture;
mod prerequisites;
mod programs;
mod run;
mod test;
mod torture;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Build, show, test and measure dfs")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Plays the main job on a local cluster: copy in, kill nodes, watch it heal, carry on
    Demo(demo::Options),
    /// Everything: format, lints, unit, property, cluster and mount tests
    Test(test::Options),
    /// Runs git, sqlite, rsync, fio, pjdfstest, fsx and others on a mount
    Programs(programs::Options),
    /// Kills, cuts off, fills and damages a local cluster, and checks that nothing promised is lost
    Torture(torture::Options),
    /// Keeps a data folder as the program writes it today, which later ones must open
    Fixture(fixture::Options),
    /// Formats the code and applies the lints' own suggestions
    Fix,
    /// Measures mount and command line beside the raw disk
    Bench(bench::Options),
}

fn main() -> Result<()> {
    match Args::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Programs(options) => programs::run(&options),
        Task::Torture(options) => torture::run(&options),
        Task::Fixture(options) => fixture::run(&options),
        Task::Fix => test::fix(),
        Task::Bench(options) => bench::run(&options),
    }
}

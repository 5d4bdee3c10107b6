//! `cargo xtask fixture`: keeps what the program writes today, for the programs of later days to open.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use dfs_cluster::fixture::Fixture;

use crate::prerequisites;
use crate::run::program;

#[derive(clap::Args)]
pub struct Options {
    /// A dfs program that is built already
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    /// The name of the new folder in deploy/fixtures: a date, so that names are in the order of time
    #[arg(long)]
    name: String,
}

pub fn run(options: &Options) -> Result<()> {
    prerequisites::install()?;
    ensure!(rustix::process::geteuid().is_root(), "a fixture needs root: it has files of several owners, and a device");
    let program = program(options.program.as_deref())?;
    // Its path is remembered in the data folder: it should say nothing about the machine.
    let scratch = std::env::temp_dir().join(format!("dfs-fixture-{}", options.name));
    std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let made = Fixture::make(&program, &options.name, &scratch);
    match &made {
        Ok(_) => std::fs::remove_dir_all(&scratch)?,
        Err(_) => eprintln!("what there was of it is in {}", scratch.display()),
    }
    let made = made?;
    println!("{}: {} names, {} KiB", made.name(), made.manifest()?.names(), made.len_bytes()? >> 10);
    Ok(())
}

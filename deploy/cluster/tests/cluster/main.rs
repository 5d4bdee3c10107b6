//! Real processes, driven through the `dfs` program and the mount.

mod bad_input;
mod bed;
mod command_line;
mod disks;
mod faults;
mod fixtures;
mod memory;
mod mounting;
mod two_mounts;
mod unmounting;

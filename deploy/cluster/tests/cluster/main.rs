//! Real processes, driven through the `dfs` program and the mount.

mod bad_input;
mod bed;
mod command_line;
mod faults;
mod two_mounts;

//! A file system of its own for each node, in an image file, so that a power cut of one node can be tried.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use super::layout::{Layout, Member};
use super::mounts;
use super::settings::Filesystem;
use crate::error::{Failure, Result};

/// Only root mounts images.
pub fn check_allowed() -> Result {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::usage("--fs needs root: it mounts an image for each node").hint("leave --fs out, or use sudo"))
}

/// Makes a node's image and its empty folder, and mounts the one on the other.
pub fn make(layout: &Layout, member: Member, fs: Filesystem) -> Result {
    let image = layout.image(member);
    let sized = fs::File::create_new(&image).and_then(|file| file.set_len(fs.size_bytes));
    sized.map_err(|error| Failure::local(&image, &error))?;
    let mkfs = format!("mkfs.{}", fs.kind.name());
    run(Command::new(&mkfs).arg("-q").arg(&image), &mkfs)?;
    let folder = layout.folder(member);
    fs::create_dir(&folder).map_err(|error| Failure::local(&folder, &error))?;
    mount(layout, member)?;
    // Keys lie in it.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    fs::set_permissions(&folder, private).map_err(|error| Failure::local(&folder, &error))
}

/// Mounts a node's image unless it is mounted.
pub fn mount(layout: &Layout, member: Member) -> Result {
    if is_mounted(layout, member)? {
        return Ok(());
    }
    let (image, folder) = (layout.image(member), layout.folder(member));
    // The loop device goes when the mount goes: `mount` asks the kernel for that by itself.
    run(Command::new("mount").arg("-o").arg("loop,nosuid,nodev").arg(&image).arg(&folder), "mount")
}

pub fn unmount(layout: &Layout, member: Member) -> Result {
    if is_mounted(layout, member)? { mounts::unmount_top(&layout.folder(member), false) } else { Ok(()) }
}

fn is_mounted(layout: &Layout, member: Member) -> Result<bool> {
    Ok(mounts::mounted_at(&layout.folder(member))?.is_some())
}

fn run(command: &mut Command, name: &str) -> Result {
    // Not every user has the system's tools on the path.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = command.env("PATH", &path).stdin(Stdio::null()).output();
    let output = match output {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let package = if name == "mkfs.xfs" { "xfsprogs" } else { "e2fsprogs mount" };
            return Err(Failure::usage(format!("{name} is not installed")).hint(format!("apt install {package}")));
        }
        output => output.map_err(|error| Failure::local(Path::new(name), &error))?,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let failure = said.lines().fold(Failure::failed(format!("{name} failed")), |failure, line| failure.cause(line));
    Err(failure)
}

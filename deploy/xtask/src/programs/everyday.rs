//! What people do with files all day.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use dfs_cluster::digest_file;

use super::Place;
use super::run::run;
use crate::run::workspace;

/// Several times what each takes on two busy cores.
const DEADLINE: Duration = Duration::from_secs(120);

/// Enough to see a program go wrong; copying all of them in and out would only take longer.
const SAMPLE: [&str; 6] = ["proto", "fuse", "deploy", "README.md", "Cargo.toml", "Cargo.lock"];

impl Place<'_> {
    /// Runs a program in the folder on the mount.
    fn call<const N: usize>(&self, program: &str, arguments: [&str; N]) -> Result<String> {
        let log = format!("{program}-{}", arguments.first().unwrap_or(&"").trim_start_matches('-').replace('/', "_"));
        run(&log, &self.logs, Command::new(program).args(arguments).current_dir(&self.dir), DEADLINE)
    }

    /// A third of the files of the project, with a few of the kinds that it lacks.
    fn sample(&self) -> Result<std::path::PathBuf> {
        let (tar, tree) = (self.local.join("sample.tar"), self.local.join("sample"));
        let mut archive = Command::new("git");
        archive.current_dir(workspace()).args(["archive", "--output"]).arg(&tar).arg("HEAD").args(SAMPLE);
        run("git-archive", &self.logs, &mut archive, DEADLINE)?;
        fs::create_dir(&tree)?;
        run("tar-sample", &self.logs, Command::new("tar").arg("-xf").arg(&tar).arg("-C").arg(&tree), DEADLINE)?;
        fs::hard_link(tree.join("README.md"), tree.join("README-again.md"))?;
        symlink("fuse/SEMANTICS.md", tree.join("promises"))?;
        fs::create_dir(tree.join("empty"))?;
        fs::write(tree.join("no-one"), b"secret")?;
        fs::set_permissions(tree.join("no-one"), fs::Permissions::from_mode(0o4600))?;
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from(0o640),
            0,
        )?;
        let sparse = File::create(tree.join("sparse"))?;
        sparse.write_all_at(b"begin", 0)?;
        sparse.write_all_at(b"end", 3 << 20)?;
        Ok(tree)
    }
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

/// The project itself: cloned, checked, changed, packed, checked again.
pub fn git(place: &Place) -> Result<String> {
    let source = format!("file://{}", workspace().display());
    place.call("git", ["clone", "--quiet", &source, "clone"])?;
    let git = |line: &[&str]| {
        let mut git = Command::new("git");
        git.args(["-c", "user.name=Test", "-c", "user.email=test@localhost"]).args(line);
        let log = format!("git-{}", line[0]);
        run(&log, &place.logs, git.current_dir(place.dir.join("clone")), DEADLINE)
    };
    git(&["fsck", "--full"])?;
    let commits: usize = git(&["rev-list", "--count", "HEAD"])?.trim().parse()?;
    fs::write(place.dir.join("clone/README.md"), b"changed\n")?;
    git(&["mv", "CONTRIBUTING.md", "HELPING.md"])?;
    git(&["commit", "--quiet", "--all", "--message", "a change"])?;
    git(&["checkout", "--quiet", "-b", "side", "HEAD~1"])?;
    ensure!(!place.dir.join("clone/HELPING.md").exists(), "a file of the other branch is there");
    git(&["checkout", "--quiet", "-"])?;
    git(&["gc", "--quiet"])?;
    git(&["fsck", "--full"])?;
    let status = git(&["status", "--porcelain"])?;
    ensure!(status.is_empty(), "git sees changes that nobody made:\n{status}");
    ensure!(git(&["rev-list", "--count", "HEAD"])?.trim().parse::<usize>()? == commits + 1, "a commit is missing");
    Ok(format!("{commits} commits"))
}

/// A crate of its own is built, run, changed, and run again.
pub fn cargo_build(place: &Place) -> Result<String> {
    let hello = place.dir.join("hello");
    fs::create_dir_all(hello.join("src"))?;
    fs::write(
        hello.join("Cargo.toml"),
        "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2021\"\n[workspace]\n",
    )?;
    let build_and_run = |greeting: &str| {
        fs::write(hello.join("src/main.rs"), format!("fn main() {{ println!(\"{greeting}\"); }}\n"))?;
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["run", "--quiet", "--offline"]).current_dir(&hello);
        // Its target folder belongs on the mount.
        for name in ["CARGO_TARGET_DIR", "CARGO_BUILD_TARGET_DIR", "RUSTFLAGS"] {
            cargo.env_remove(name);
        }
        let said = run("cargo", &place.logs, &mut cargo, DEADLINE)?;
        ensure!(said.trim() == greeting, "{greeting:?} was built, and it says {said:?}");
        Ok(())
    };
    build_and_run("hello")?;
    build_and_run("hello again")?;
    Ok(String::new())
}

/// Out of an archive, into another one, and both compared with what lies there.
pub fn tar(place: &Place) -> Result<String> {
    let tree = place.sample()?;
    let tree = text(&tree)?;
    place.call("tar", ["--create", "--sparse", "--file", "in.tar", "--directory", tree, "."])?;
    fs::create_dir(place.dir.join("out"))?;
    place.call("tar", ["--extract", "--same-permissions", "--file", "in.tar", "--directory", "out"])?;
    place.call("tar", ["--compare", "--file", "in.tar", "--directory", "out"])?;
    place.call("tar", ["--create", "--sparse", "--file", "again.tar", "--directory", "out", "."])?;
    // The copy that went through the mount twice, with the original on the local disk.
    place.call("tar", ["--compare", "--file", "again.tar", "--directory", tree])?;
    let names = place.dir.join("out");
    ensure!(fs::metadata(names.join("README.md"))?.nlink() == 2, "a hard link became a copy");
    Ok(String::new())
}

/// Twice: the second has nothing to do.
pub fn rsync(place: &Place) -> Result<String> {
    let from = format!("{}/", text(&place.sample()?)?);
    let arguments = ["-aH", "--checksum", "--itemize-changes", &from, "copy/"];
    let first = place.call("rsync", arguments)?;
    let second = place.call("rsync", arguments)?;
    ensure!(second.is_empty(), "rsync copies again what it has copied:\n{second}");
    // A change of one file is all that there is to do then.
    fs::write(place.dir.join("copy/Cargo.toml"), b"other")?;
    let third = place.call("rsync", arguments)?;
    ensure!(third.lines().count() == 1, "one file was changed, and rsync copies:\n{third}");
    Ok(format!("{} entries", first.lines().count()))
}

/// Bytes are kept and holes need not become bytes.
pub fn copy_sparse(place: &Place) -> Result<String> {
    const SIZE: u64 = 64 << 20;
    let sparse = place.dir.join("sparse");
    let file = File::create(&sparse)?;
    file.set_len(SIZE)?;
    for piece in 0..8u64 {
        let mut bytes = vec![0; 70_000];
        blake3::Hasher::new().update(&piece.to_le_bytes()).finalize_xof().fill(&mut bytes);
        file.write_all_at(&bytes, piece * (SIZE / 8) + 1000 * piece)?;
    }
    drop(file);
    place.call("cp", ["-a", "--sparse=always", "sparse", "copy"])?;
    place.call("cmp", ["sparse", "copy"])?;
    let (from, copy) = (fs::metadata(&sparse)?, fs::metadata(place.dir.join("copy"))?);
    ensure!(copy.blocks() * 512 < SIZE / 8, "the copy takes {} KiB", copy.blocks() / 2);
    ensure!(from.mtime_nsec() == copy.mtime_nsec(), "cp -a does not keep the time");
    Ok(format!("{} KiB of {} MiB are bytes", copy.blocks() / 2, SIZE >> 20))
}

/// A package is built on the mount and unpacked there.
pub fn dpkg_deb(place: &Place) -> Result<String> {
    let tree = place.dir.join("tree");
    fs::create_dir_all(tree.join("DEBIAN"))?;
    fs::write(
        tree.join("DEBIAN/control"),
        "Package: hello-dfs\nVersion: 1.0\nArchitecture: all\nMaintainer: Test <test@localhost>\nDescription: test\n",
    )?;
    fs::create_dir_all(tree.join("usr/share/doc/hello-dfs"))?;
    for number in 0..20 {
        fs::write(tree.join(format!("usr/share/doc/hello-dfs/{number}")), format!("{number}\n").repeat(5000))?;
    }
    symlink("doc/hello-dfs", tree.join("usr/share/hello"))?;
    place.call("dpkg-deb", ["--root-owner-group", "-b", "tree", "hello.deb"])?;
    place.call("dpkg-deb", ["-x", "hello.deb", "out"])?;
    fs::remove_dir_all(tree.join("DEBIAN"))?;
    place.call("diff", ["-r", "--no-dereference", "tree", "out"])?;
    Ok(String::new())
}

/// Files and trees: within the mount by a rename, to it and from it by a copy.
pub fn mv(place: &Place) -> Result<String> {
    let tree = place.sample()?;
    let (digest, _) = digest_file(&tree.join("Cargo.lock"))?;
    let original = text(&tree)?.to_owned() + "-kept";
    place.call("cp", ["-a", text(&tree)?, &original])?;
    place.call("mkdir", ["-p", "a/b", "c"])?;
    place.call("mv", [text(&tree)?, "a/b/tree"])?;
    let inode = fs::metadata(place.dir.join("a/b/tree/Cargo.lock"))?.ino();
    place.call("mv", ["a/b/tree", "c/moved"])?;
    place.call("mv", ["c/moved/Cargo.lock", "a/lock"])?;
    ensure!(fs::metadata(place.dir.join("a/lock"))?.ino() == inode, "mv within the mount copies");
    ensure!(!place.dir.join("a/b/tree").exists(), "what was moved is still there");
    ensure!(digest_file(&place.dir.join("a/lock"))?.0 == digest, "a moved file differs");
    place.call("mv", ["a/lock", "c/moved/Cargo.lock"])?;
    place.call("mv", ["c/moved", text(&tree)?])?;
    // Fifos are the same and not to be read; everything else is compared byte by byte.
    place.call("diff", ["-r", "--no-dereference", "--exclude=fifo", text(&tree)?, &original])?;
    ensure!(fs::read_dir(place.dir.join("c"))?.next().is_none(), "something is left behind");
    Ok(String::new())
}

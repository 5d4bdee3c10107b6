//! The file verbs, as a user types them, without a mount.

use std::fs;

use crate::bed::Bed;
use dfs_cluster::Tree;

#[test]
fn what_was_put_recursively_is_got_back_the_same() {
    let bed = Bed::start(1, 3, &[]);
    let source = bed.dir.path().join("source");
    for n in 0..40usize {
        let folder = source.join(format!("folder{}", n % 5));
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(format!("file{n}")), vec![n as u8; n * 20_000]).unwrap();
    }
    let text = |path: &std::path::Path| path.to_str().unwrap().to_owned();
    bed.cluster.run(["put", &text(&source), "/copy"]).unwrap();
    let back = bed.dir.path().join("back");
    bed.cluster.run(["get", "/copy", &text(&back)]).unwrap();
    let original = Tree::read(&source).unwrap();
    original.expect_same(&Tree::read(&back).unwrap()).unwrap();
    // The mount shows the same.
    original.expect_same(&Tree::read(&bed.mount().join("copy")).unwrap()).unwrap();

    bed.cluster.run(["mv", "/copy", "/moved"]).unwrap();
    bed.cluster.run(["cp", "-r", "/moved", "/twice"]).unwrap();
    original.expect_same(&Tree::read(&bed.mount().join("twice")).unwrap()).unwrap();
    // A copy within the cluster shares the bytes.
    let extents = |path: &str| {
        let info = bed.cluster.run(["info", "--json", path]).unwrap();
        serde_json::from_str::<serde_json::Value>(&info).unwrap()["extents"].clone()
    };
    assert_eq!(extents("/moved/folder4/file39"), extents("/twice/folder4/file39"));
    let du: u64 = bed.cluster.run(["du", "-s", "/twice"]).unwrap().split_whitespace().next().unwrap().parse().unwrap();
    assert_eq!(du, original.bytes);
    bed.cluster.run(["rm", "-r", "/moved", "/twice"]).unwrap();
    assert_eq!(fs::read_dir(bed.mount()).unwrap().count(), 0);
}

#[test]
fn data_goes_to_stdout_and_json_is_json() {
    let bed = Bed::start(1, 3, &[]);
    fs::write(bed.mount().join("file"), "line 1\nline 2\nline 3\n").unwrap();
    assert_eq!(bed.cluster.run(["cat", "/file"]).unwrap(), "line 1\nline 2\nline 3\n");
    assert_eq!(bed.cluster.run(["tail", "-n", "1", "/file"]).unwrap(), "line 3\n");
    let stat: serde_json::Value = serde_json::from_str(&bed.cluster.run(["stat", "--json", "/file"]).unwrap()).unwrap();
    assert_eq!(stat["size_bytes"], 21);
    assert_eq!(stat["schema"], 1);
    for verb in [vec!["ls", "--json", "/"], vec!["df", "--json"], vec!["status", "--json"], vec!["du", "--json", "/"]] {
        let output = bed.cluster.dfs([]).args(&verb).output().unwrap();
        for line in String::from_utf8(output.stdout).unwrap().lines() {
            serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|e| panic!("{verb:?}: {e}: {line}"));
        }
    }
}

#[test]
fn modes_links_times_and_sizes_are_set_and_shown() {
    let bed = Bed::start(1, 3, &[]);
    bed.cluster.run(["mkdir", "-p", "/a/b"]).unwrap();
    bed.cluster.run(["touch", "/a/b/file"]).unwrap();
    bed.cluster.run(["chmod", "640", "/a/b/file"]).unwrap();
    bed.cluster.run(["truncate", "-s", "1000000", "/a/b/file"]).unwrap();
    bed.cluster.run(["ln", "/a/b/file", "/a/hard"]).unwrap();
    bed.cluster.run(["ln", "-s", "b/file", "/a/soft"]).unwrap();
    let meta = fs::metadata(bed.mount().join("a/soft")).unwrap();
    use std::os::unix::fs::MetadataExt;
    assert_eq!((meta.mode() & 0o7777, meta.len(), meta.nlink()), (0o640, 1_000_000, 2));
    assert_eq!(bed.cluster.run(["find", "/a", "-name", "file"]).unwrap().trim(), "/a/b/file");
    assert!(bed.cluster.run(["ls", "-l", "/a"]).unwrap().contains("soft -> b/file"));
    bed.cluster.run(["setrep", "2", "/a/b/file"]).unwrap();
    bed.cluster.run(["rm", "/a/hard"]).unwrap();
    bed.cluster.run(["test", "-f", "/a/b/file"]).unwrap();
}

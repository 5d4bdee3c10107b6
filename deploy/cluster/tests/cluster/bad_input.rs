//! Bad input gets a clear error, the right exit code, and nothing is lost.

use std::fs;
use std::process::Command;

use crate::bed::{Bed, program};

/// Runs `dfs` and returns its exit code and what it said on stderr.
fn dfs(bed: &Bed, args: &[&str]) -> (i32, String) {
    let output = Command::new(program()).args(args).env("DFS_CLUSTER", bed.cluster.config()).output().unwrap();
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn every_mistake_has_its_exit_code_and_says_what_to_do() {
    let bed = Bed::start(1, 3, &[]);
    let data = bed.cluster.dir().to_str().unwrap().to_owned();
    let long_name = format!("/{}", "x".repeat(256));
    let local = bed.dir.path().join("local");
    fs::write(&local, "bytes").unwrap();
    let local = local.to_str().unwrap();

    for (args, code, says) in [
        (vec!["ls", "/absent"], 3, "/absent"),
        (vec!["cat", "/absent"], 3, "/absent"),
        (vec!["get", "/absent", "-"], 3, "/absent"),
        (vec!["put", "/absent/local/file", "/"], 3, "/absent/local/file"),
        (vec!["put", local, "/no/such/folder/"], 3, "/no/such"),
        (vec!["mkdir", &long_name], 2, "255"),
        (vec!["rm", "-r", "/"], 2, "/"),
        (vec!["frobnicate"], 2, "frobnicate"),
        (vec!["chmod", "99x", "/"], 2, "99x"),
        (vec!["--cluster", "/absent/cluster.toml", "ls", "/"], 2, "/absent/cluster.toml"),
        (vec!["up", "--dir", &data, "--datanodes", "2"], 2, "--datanodes"),
    ] {
        let (found, stderr) = dfs(&bed, &args);
        assert_eq!(found, code, "{args:?}: {stderr}");
        assert!(stderr.contains(says), "{args:?} does not name {says}: {stderr}");
        assert!(stderr.starts_with("error:"), "{args:?}: {stderr}");
    }
    assert_eq!(dfs(&bed, &["test", "-e", "/absent"]).0, 1);
    assert_eq!(dfs(&bed, &["test", "-d", "/"]).0, 0);
}

#[test]
fn a_config_of_another_shape_is_refused_with_the_key_that_is_wrong() {
    let dir = tempfile::TempDir::new().unwrap();
    let config = dir.path().join("cluster.toml");
    fs::write(&config, "colour = \"red\"\n").unwrap();
    let output = Command::new(program()).arg("--cluster").arg(&config).args(["ls", "/"]).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{stderr}");
    assert!(stderr.contains("cluster.toml"), "{stderr}");
}

#[test]
fn a_second_process_on_a_node_s_folder_and_a_foreign_folder_are_refused() {
    let bed = Bed::start(1, 3, &[]);
    let config = bed.cluster.dir().join("dn1").join("datanode.toml");
    let output = Command::new(program()).arg("datanode").arg("--config").arg(&config).output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(stderr.contains("in use"), "{stderr}");

    let thesis = bed.dir.path().join("thesis");
    fs::create_dir(&thesis).unwrap();
    fs::write(thesis.join("chapter1.tex"), "precious").unwrap();
    let output = Command::new(program()).arg("up").arg("--dir").arg(&thesis).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read_dir(&thesis).unwrap().count(), 1, "a folder that is not ours was changed");
}

#[test]
fn more_replicas_than_datanodes_works_and_says_so() {
    let bed = Bed::start(1, 2, &[]);
    fs::write(bed.mount().join("file"), vec![7; 3 << 20]).unwrap();
    assert_eq!(fs::read(bed.mount().join("file")).unwrap(), vec![7; 3 << 20]);
    let status = bed.cluster.run(["status"]).unwrap();
    assert!(status.contains("HEALTH_WARN"), "{status}");
}

#[test]
fn without_a_quorum_calls_end_with_an_error_and_the_mount_can_be_taken_down() {
    let bed = Bed::start(3, 3, &[]);
    fs::write(bed.mount().join("before"), "bytes").unwrap();
    for name in ["nn1", "nn2"] {
        bed.cluster.kill(name).unwrap();
    }
    let error = fs::write(bed.mount().join("during"), "bytes").unwrap_err();
    let expected = [rustix::io::Errno::TIMEDOUT, rustix::io::Errno::IO];
    assert!(expected.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error())), "{error}");
    let status = Command::new(program()).arg("umount").arg(bed.mount()).status().unwrap();
    assert!(status.success());
    for name in ["nn1", "nn2"] {
        bed.cluster.start(name).unwrap();
    }
    bed.cluster.start_all().unwrap();
    assert_eq!(fs::read(bed.mount().join("before")).unwrap(), b"bytes");
}

#[test]
fn garbage_on_every_port_disturbs_nobody() {
    let bed = Bed::start(3, 3, &[]);
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    for port in bed.cluster.ports().unwrap() {
        for seed in 0..300usize {
            let garbage: Vec<u8> = (0..seed * 11 % 1400 + 1).map(|i| (i * 31 + seed * 17) as u8).collect();
            socket.send_to(&garbage, ("127.0.0.1", port)).unwrap();
        }
    }
    fs::write(bed.mount().join("after"), "bytes").unwrap();
    assert_eq!(fs::read(bed.mount().join("after")).unwrap(), b"bytes");
    for name in [bed.cluster.namenodes(), bed.cluster.datanodes()].concat() {
        assert!(bed.cluster.is_running(&name), "{name} ended");
    }
}

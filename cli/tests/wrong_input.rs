// SPDX-License-Identifier: GPL-2.0-only
//! Wrong input: every mistake gives its exit code and one line that names the cause, and changes nothing.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// A directory for one test, with a volume in it.
struct Home {
    dir: PathBuf,
}

impl Home {
    fn new(name: &str) -> Home {
        let dir = std::env::temp_dir().join(format!("vexfs-wrong-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir).unwrap();
        let home = Home { dir };
        home.ok(&["mkfs", "-q", "-s", "64M", "v"]);
        home
    }

    fn run(&self, args: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_vexfs")).args(args).current_dir(&self.dir).output().unwrap()
    }

    fn ok(&self, args: &[&str]) -> String {
        let o = self.run(args);
        assert!(o.status.success(), "{args:?}: {}", String::from_utf8_lossy(&o.stderr));
        String::from_utf8(o.stdout).unwrap()
    }

    /// The command fails with this exit code, says this, in one line if it is not about a place in the input.
    fn fails(&self, code: i32, say: &str, args: &[&str]) -> String {
        let o = self.run(args);
        let text = String::from_utf8_lossy(&o.stderr).into_owned();
        assert_eq!(o.status.code(), Some(code), "{args:?}: {text}");
        assert!(text.contains(say), "{args:?}: {text:?} does not say {say:?}");
        assert!(o.stdout.is_empty(), "{args:?} printed {}", String::from_utf8_lossy(&o.stdout));
        text
    }

    fn file(&self, name: &str, bytes: &[u8]) {
        std::fs::write(self.dir.join(name), bytes).unwrap();
    }

    fn collection(&self, name: &str, dim: &str, metric: &str) {
        self.ok(&["collection", "create", &format!("v:/{name}"), "--dim", dim, "--metric", metric, "--index", "flat"]);
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
    let order = if fortran { "True" } else { "False" };
    let mut head = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}").into_bytes();
    head.resize(118 - 1, b' ');
    head.push(b'\n');
    let mut b = b"\x93NUMPY\x01\x00".to_vec();
    b.extend((head.len() as u16).to_le_bytes());
    b.extend(head);
    b.extend(data);
    b
}

fn f32s(v: &[f32]) -> Vec<u8> {
    v.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn vectors() {
    let h = Home::new("vectors");
    h.collection("c", "3", "cosine");
    h.fails(2, "dimension", &["insert", "v:/c", "--vector", "1,2"]);
    h.fails(2, "dimension", &["search", "v:/c", "--vector", "1,2,3,4"]);
    h.fails(2, "NaN", &["insert", "v:/c", "--vector", "1,nan,3"]);
    h.fails(2, "infinity", &["insert", "v:/c", "--vector", "1,inf,3"]);
    h.fails(2, "infinity", &["search", "v:/c", "--vector", "1,-inf,3"]);
    h.fails(2, "infinity", &["insert", "v:/c", "--vector", "1,1e39,3"]);
    h.fails(2, "range", &["insert", "v:/c", "--vector", "3e38,3e38,3e38"]);
    h.fails(2, "zero vector", &["insert", "v:/c", "--vector", "0,0,0"]);
    h.fails(2, "zero vector", &["search", "v:/c", "--vector", "0,0,0"]);
    h.fails(2, "'x' is not a number", &["insert", "v:/c", "--vector", "1,x,3"]);
    h.fails(2, "no elements", &["insert", "v:/c", "--vector", ""]);
    // A batch with one bad vector names it, and nothing of the batch is there.
    h.file("bad.npy", &npy("<f4", false, "(3, 3)", &f32s(&[1., 2., 3., 4., f32::NAN, 6., 7., 8., 9.])));
    h.fails(2, "1", &["insert", "v:/c", "--npy", "bad.npy"]);
    assert_eq!(h.ok(&["list", "v:/c"]), "");
    // Zero is a vector like any other for l2.
    h.collection("l2", "3", "l2");
    h.ok(&["insert", "v:/l2", "--vector", "0,0,0"]);
    assert_eq!(
        h.ok(&["search", "v:/l2", "--vector", "0,0,1", "--json"]),
        "{\"query\":0,\"results\":[{\"id\":0,\"distance\":1.0}]}\n"
    );
}

#[test]
fn vector_files() {
    let h = Home::new("files");
    h.collection("c", "2", "l2");
    let by_columns = f32s(&[1., 3., 5., 2., 4., 6.]);
    let doubles: Vec<u8> = [1f64, 2., 3., 4., 5., 6.].iter().flat_map(|x| x.to_le_bytes()).collect();
    let plain = f32s(&[1., 2., 3., 4., 5., 6.]);
    for (name, bytes) in [
        ("f4.npy", npy("<f4", false, "(3, 2)", &plain)),
        ("f8.npy", npy("<f8", false, "(3, 2)", &doubles)),
        ("fortran.npy", npy("<f4", true, "(3, 2)", &by_columns)),
    ] {
        h.file(name, &bytes);
        let name_only = name.trim_end_matches(".npy");
        h.collection(name_only, "2", "l2");
        h.ok(&["insert", &format!("v:/{name_only}"), "--npy", name]);
        let got = h.ok(&["get", &format!("v:/{name_only}"), "0", "1", "2", "--json"]);
        assert_eq!(got.matches("\"vector\":[3.0,4.0]").count(), 1, "{name}: {got}");
        assert!(got.ends_with("\"vector\":[5.0,6.0]}\n"), "{name}: {got}");
    }
    h.file("cut.npy", &npy("<f4", false, "(4, 2)", &plain));
    h.fails(2, "truncated", &["insert", "v:/c", "--npy", "cut.npy"]);
    h.file("ints.npy", &npy("<i8", false, "(3, 1)", &[0; 24]));
    h.fails(2, "float32", &["insert", "v:/c", "--npy", "ints.npy"]);
    h.file("no.npy", b"hello");
    h.fails(2, "not a .npy file", &["insert", "v:/c", "--npy", "no.npy"]);
    h.fails(3, "nothing.npy: No such file", &["insert", "v:/c", "--npy", "nothing.npy"]);
    h.fails(2, "not a regular file", &["insert", "v:/c", "--npy", "."]);
    h.file("cut.fvecs", &[2, 0, 0, 0, 1]);
    h.fails(2, "truncated", &["insert", "v:/c", "--fvecs", "cut.fvecs"]);
    h.fails(2, "cannot be used with", &["insert", "v:/c", "--npy", "f4.npy", "--vector", "1,2"]);
    h.fails(2, "possible values: each, batch, end", &["insert", "v:/c", "--npy", "f4.npy", "--sync", "sometimes"]);
}

#[test]
fn ids_and_attributes() {
    let h = Home::new("ids");
    h.collection("c", "2", "l2");
    h.file("v.npy", &npy("<f4", false, "(2, 2)", &f32s(&[1., 2., 3., 4.])));
    h.file("one.ids", b"7\n");
    h.fails(2, "1 ids for 2 vectors", &["insert", "v:/c", "--npy", "v.npy", "--ids", "one.ids"]);
    h.file("neg.ids", b"7\n-1\n");
    h.fails(2, "line 2: '-1'", &["insert", "v:/c", "--npy", "v.npy", "--ids", "neg.ids"]);
    h.file("file.ids", b"7\n9223372036854775808\n");
    h.fails(
        2,
        "file.ids: row 1 (the first is 0): its id is above",
        &["insert", "v:/c", "--npy", "v.npy", "--ids", "file.ids"],
    );
    h.file("a.jsonl", b"{\"x\": 1}\n");
    h.fails(2, "only 1 lines for 2 vectors", &["insert", "v:/c", "--npy", "v.npy", "--attrs", "a.jsonl"]);
    h.file("b.jsonl", b"{\"x\": 1}\n{\"x\": }\n");
    h.fails(2, "line 2, column 7", &["insert", "v:/c", "--npy", "v.npy", "--attrs", "b.jsonl"]);
    h.file("c.jsonl", b"{\"x\": 1}\n{\"x\": [1]}\n");
    h.fails(2, "line 2: 'x' is a list", &["insert", "v:/c", "--npy", "v.npy", "--attrs", "c.jsonl"]);
    let long = format!("{{\"x\": 1}}\n{{\"x\": \"{}\"}}\n", "y".repeat(70_000));
    h.file("d.jsonl", long.as_bytes());
    h.fails(2, "70000 bytes", &["insert", "v:/c", "--npy", "v.npy", "--attrs", "d.jsonl"]);
    assert_eq!(h.ok(&["list", "v:/c"]), "", "something was inserted");
    // Ids continue; an existing id is replaced, or refused if that is asked for.
    h.file("two.ids", b"5\n6\n");
    h.ok(&["insert", "v:/c", "--npy", "v.npy", "--ids", "two.ids"]);
    h.ok(&["insert", "v:/c", "--npy", "v.npy", "--ids", "two.ids"]);
    h.fails(4, "exist", &["insert", "v:/c", "--npy", "v.npy", "--ids", "two.ids", "--if-absent"]);
    assert_eq!(h.ok(&["list", "v:/c"]), "5\n6\n");
    h.fails(3, "no record 8", &["get", "v:/c", "8"]);
    let o = h.run(&["delete", "v:/c", "5", "8"]);
    assert_eq!(
        (o.status.code(), String::from_utf8_lossy(&o.stdout).into_owned()),
        (Some(3), "1 record deleted\n".into())
    );
    h.file("up.jsonl", b"{\"x\": 1}\n");
    h.fails(2, "no member \"id\"", &["update", "v:/c", "--attrs", "up.jsonl"]);
}

#[test]
fn searches() {
    let h = Home::new("search");
    h.collection("c", "2", "l2");
    for i in 0..5 {
        h.ok(&["insert", "v:/c", "--vector", &format!("{i},0")]);
    }
    h.fails(2, "-k must be at least 1", &["search", "v:/c", "--vector", "0,0", "-k", "0"]);
    h.fails(2, "at most", &["search", "v:/c", "--vector", "0,0", "-k", "4000000000"]);
    // k larger than the collection: all of it.
    let all = h.ok(&["search", "v:/c", "--vector", "0,0", "-k", "1000"]);
    assert_eq!(all.lines().count(), 5);
    let near = h.ok(&["search", "v:/c", "--vector", "0,0", "-k", "1000", "--radius", "4"]);
    assert_eq!(near.lines().count(), 3, "a radius is inclusive and in reported units");
    // A mistake in a filter is shown at its place.
    let text = h.fails(2, "filter", &["search", "v:/c", "--vector", "0,0", "--where", "a = 1 and b <"]);
    let lines: Vec<_> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert_eq!(lines[1], "  a = 1 and b <");
    assert_eq!(lines[2].find('^'), Some(2 + 13), "{text}");
    let text = h.fails(2, "filter", &["list", "v:/c", "--where", "a ! 1"]);
    assert_eq!(text.lines().nth(2).unwrap().find('^'), Some(2 + 2), "{text}");
    h.fails(2, "filter", &["delete", "v:/c", "--where", "(a = 1"]);
    h.file("q.ids", b"3000000000\n");
    h.file("q.npy", &npy("<f4", false, "(1, 2)", &f32s(&[9., 9.])));
    h.ok(&["insert", "v:/c", "--npy", "q.npy", "--ids", "q.ids"]);
    h.fails(2, "3000000000 is larger", &["search", "v:/c", "--vector", "9,9", "-k", "1", "--ivecs", "out.ivecs"]);
    assert!(!h.dir.join("out.ivecs").exists(), "half a file was left");
    // An empty filter is a mistake (of a script, most likely), not a filter that all records pass.
    for command in [
        &["search", "v:/c", "--vector", "0,0", "--where", " "][..],
        &["list", "v:/c", "--where", ""],
        &["delete", "v:/c", "--where", ""],
    ] {
        h.fails(2, "the filter is empty", command);
    }
}

#[test]
fn a_radius_without_k_gives_all_that_is_in_it() {
    let h = Home::new("radius");
    h.collection("c", "1", "l2");
    let v: Vec<f32> = (0..50).map(|i| i as f32).collect();
    h.file("v.npy", &npy("<f4", false, "(50, 1)", &f32s(&v)));
    h.ok(&["insert", "v:/c", "--npy", "v.npy"]);
    let count = |args: &[&str]| h.ok(&[&["search", "v:/c", "--vector", "0"], args].concat()).lines().count();
    assert_eq!(count(&[]), 10);
    assert_eq!(count(&["--radius", "900"]), 31);
    assert_eq!(count(&["--radius", "900", "-k", "5"]), 5);
    // Several queries, each with all of its own.
    let all = h.ok(&["search", "v:/c", "--npy", "v.npy", "--radius", "1", "--json"]);
    assert_eq!(all.matches("\"id\"").count(), 50 * 3 - 2);
    assert_eq!(all.lines().count(), 50);
    assert!(all.lines().nth(49).unwrap().starts_with("{\"query\":49,"), "{all}");
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    let h = Home::new("nothing");
    h.fails(
        2,
        "bits",
        &["collection", "create", "v:/c", "--dim", "2", "--metric", "l2", "--index", "pq", "--bits", "7"],
    );
    assert_eq!(h.ok(&["ls", "v:/"]), "");
    h.ok(&["mkdir", "v:/there"]);
    h.fails(
        2,
        "lists",
        &["collection", "create", "v:/there", "--dim", "2", "--metric", "l2", "--index", "pq", "--lists", "3"],
    );
    h.fails(2, "not a collection", &["export", "v:/there", "out"]);
    assert!(!h.dir.join("out").exists());
    assert_eq!(h.ok(&["ls", "v:/"]), "there\n");
    // A size that no filesystem has files of.
    h.fails(1, "huge", &["mkfs", "-s", "8388607T", "huge"]);
    assert!(!h.dir.join("huge").exists());
    h.file("o.npy", &npy("|O", false, "(3,)", b"pickled"));
    h.collection("c", "2", "l2");
    h.fails(2, "holds objects", &["insert", "v:/c", "--npy", "o.npy"]);
    h.fails(2, "is a directory", &["info", "."]);
    h.fails(2, "is the root directory", &["rm", "-r", "v:/"]);
    h.ok(&["insert", "v:/c", "--vector", "1,2"]);
    h.fails(4, "collection drop", &["rm", "-r", "v:/c"]);
}

#[test]
fn mounts_that_cannot_be() {
    let h = Home::new("mount");
    h.file("empty", b"");
    std::fs::create_dir(h.dir.join("d")).unwrap();
    h.fails(3, "no such file", &["mount", "nothing", "d"]);
    h.fails(3, "mkdir", &["mount", "v", "nowhere"]);
    h.fails(3, "not a directory", &["mount", "v", "empty"]);
    h.fails(7, "the file is empty", &["mount", "empty", "d"]);
    h.fails(2, "is a directory", &["mount", "d", "d"]);
    h.fails(2, "mount option bogus: not known", &["mount", "v", "d", "-o", "ro,bogus"]);
    h.fails(3, "no volume is mounted here", &["umount", "d"]);
    let held = vexfs_embedded::FileDevice::open(h.dir.join("v"), vexfs_embedded::Access::ReadWrite).unwrap();
    h.fails(8, "in use", &["mount", "v", "d"]);
    h.fails(8, "in use", &["mount", "v", "d", "--foreground"]);
    drop(held);
}

#[test]
fn fsck_says_what_it_repaired() {
    let h = Home::new("fsck");
    let fsck = |args: &[&str]| h.run(&[&["fsck"], args, &["v"]].concat()).status.code();
    assert_eq!((fsck(&[]), fsck(&["-n"]), fsck(&["-p"]), fsck(&["-y"])), (Some(0), Some(0), Some(0), Some(0)));
    for mode in ["-p", "-y"] {
        // One copy of a superblock: opening the volume heals it, and that is a repair.
        let mut b = std::fs::read(h.dir.join("v")).unwrap();
        b[1024 * 4096 + 20] ^= 0x40;
        h.file("v", &b);
        assert_eq!(fsck(&["-n"]), Some(4));
        assert_eq!(std::fs::read(h.dir.join("v")).unwrap(), b, "-n wrote");
        assert_eq!(fsck(&[mode]), Some(1));
        assert_eq!(fsck(&["-n"]), Some(0));
    }
    assert_eq!(h.run(&["fsck", "nothing"]).status.code(), Some(8));
}

#[test]
fn a_search_tells_that_vectors_are_damaged() {
    let h = Home::new("damaged");
    h.collection("c", "3", "l2");
    let v = f32s(&[1.5, 2.5, 3.5, 4.5, 5.5, 6.5]);
    h.file("v.npy", &npy("<f4", false, "(2, 3)", &v));
    h.ok(&["insert", "v:/c", "--npy", "v.npy"]);
    assert_eq!(h.ok(&["search", "v:/c", "--vector", "1,2,3"]).lines().count(), 2);
    // The packed vectors are in one block of their own, and older copies of them in the log.
    let mut b = std::fs::read(h.dir.join("v")).unwrap();
    let place = (32..b.len() / 4096).map(|n| n * 4096).find(|at| b[*at..].starts_with(&v)).expect("no vectors");
    b[place + 5] ^= 1;
    h.file("v", &b);
    let o = h.run(&["search", "v:/c", "--vector", "1,2,3", "--json"]);
    let (out, err) = (String::from_utf8_lossy(&o.stdout), String::from_utf8_lossy(&o.stderr));
    assert_eq!(o.status.code(), Some(7), "{out}{err}");
    assert!(err.contains("damaged vectors") && out.contains("\"results\""), "{out}{err}");
    assert_eq!(h.ok(&["list", "v:/c", "--json", "--vectors"]).matches("\"damaged\":true").count(), 2);
    // An export leaves them out and says so.
    h.ok(&["insert", "v:/c", "--vector", "7,8,9"]);
    let o = h.run(&["export", "v:/c", "out", "--json"]);
    assert_eq!(o.status.code(), Some(7), "{}", String::from_utf8_lossy(&o.stderr));
    assert!(String::from_utf8_lossy(&o.stdout).contains("\"damaged\":2"));
    assert!(String::from_utf8_lossy(&o.stdout).contains("\"records\":1"));
}

#[test]
fn collections_and_paths() {
    let h = Home::new("paths");
    h.collection("c", "2", "l2");
    let create = |path: &'static str, dim: &'static str, metric: &'static str| {
        ["collection", "create", path, "--dim", dim, "--metric", metric]
    };
    h.fails(4, "is a collection already", &create("v:/c", "2", "l2"));
    h.fails(2, "possible values: l2, cosine, ip", &create("v:/d", "2", "euclid"));
    h.fails(2, "0 is not in 1..=65536", &create("v:/d", "0", "l2"));
    h.fails(2, "65537 is not in 1..=65536", &create("v:/d", "65537", "l2"));
    h.fails(3, "v:/no/d", &create("v:/no/d", "2", "l2"));
    h.fails(3, "no such directory in the volume", &["search", "v:/no", "--vector", "1,2"]);
    h.fails(3, "no such", &["search", "w:/c", "--vector", "1,2"]);
    h.fails(3, "no such directory", &["search", "nowhere", "--vector", "1,2"]);
    h.fails(3, "not on a mounted VexFS", &["search", ".", "--vector", "1,2"]);
    h.ok(&["mkdir", "v:/plain"]);
    h.fails(2, "not a collection", &["search", "v:/plain", "--vector", "1,2"]);
    h.fails(2, "not a collection", &["insert", "v:/plain", "--vector", "1,2"]);
    h.fails(2, "not a collection", &["collection", "drop", "v:/plain"]);
    h.file("f", b"x");
    h.ok(&["put", "f", "v:/plain"]);
    h.fails(3, "is no directory", &["search", "v:/plain/f", "--vector", "1,2"]);
    h.fails(3, "no such", &["embed", "v:/plain/g", "--vector", "1,2"]);
    h.fails(3, "no such", &["cat", "v:/plain/g"]);
    h.fails(2, "is a directory", &["cat", "v:/plain"]);
    h.fails(2, "is a directory", &["rm", "v:/plain"]);
    h.fails(3, "w: no such image or device", &["ls", "w:/"]);
    h.fails(2, "on a mounted volume use ls", &["ls", "."]);
    h.fails(3, "no such", &["ls", "v:/no"]);
    h.fails(4, "exists", &["mkdir", "v:/plain"]);
    // The embedding of a file, of one that is outside of any collection too.
    h.ok(&["embed", "v:/plain/f", "--vector", "1,2,3"]);
    assert!(h.ok(&["embed", "v:/plain/f", "--show"]).contains("\"dim\":3,\"stale\":false,\"vector\":[1.0,2.0,3.0]"));
    h.ok(&["embed", "v:/plain/f", "--remove"]);
    h.fails(3, "no embedding", &["embed", "v:/plain/f", "--remove"]);
    h.fails(2, "only regular files", &["embed", "v:/plain", "--vector", "1,2,3"]);
    // In a collection it has to have the collection's dimension.
    h.ok(&["put", "f", "v:/c"]);
    h.fails(2, "has 3 dimensions, the collection has 2", &["embed", "v:/c/f", "--vector", "1,2,3"]);
    h.fails(3, "v:/c/f", &["embed", "v:/c/f", "--show"]);
    h.ok(&["embed", "v:/c/f", "--vector", "1,2"]);
    h.fails(3, "v:/plain/f", &["embed", "v:/plain/f", "--show"]);
    h.fails(2, "2 vectors for 1 files", &{
        h.file("two.npy", &npy("<f4", false, "(2, 2)", &f32s(&[1., 2., 3., 4.])));
        ["embed", "v:/plain/f", "--npy", "two.npy"]
    });
}

#[test]
fn mkfs_refuses_what_is_used() {
    let h = Home::new("mkfs");
    h.fails(4, "a VexFS filesystem", &["mkfs", "v"]);
    h.ok(&["mkfs", "-q", "-f", "v"]);
    h.fails(3, "give its size", &["mkfs", "new"]);
    h.fails(2, "the least is 16.0 MiB", &["mkfs", "-s", "1M", "new"]);
    h.fails(2, "no unit", &["mkfs", "-s", "64Q", "new"]);
    assert!(!h.dir.join("new").exists());
    h.file("text", &b"important ".repeat(2_000_000));
    h.fails(4, "a file with contents", &["mkfs", "text"]);
    h.fails(2, "directory", &["mkfs", "-s", "64M", "."]);
    h.fails(2, "65 bytes, 64 fit", &["mkfs", "-f", "-L", &"x".repeat(65), "v"]);
    h.fails(2, "not a UUID", &["mkfs", "-f", "-U", "12", "v"]);
    let other = |name: &str, offset: usize, magic: &[u8]| {
        let mut b = vec![0; 20 << 20];
        b[offset..offset + magic.len()].copy_from_slice(magic);
        h.file(name, &b);
    };
    for (name, offset, magic, say) in [
        ("ext4", 0x438, &b"\x53\xef"[..], "an ext2 filesystem"),
        ("xfs", 0, b"XFSB", "an XFS filesystem"),
        ("btrfs", 0x10040, b"_BHRfS_M", "a btrfs filesystem"),
        ("fat", 0x52, b"FAT32   ", "a FAT filesystem"),
        ("swap", 4086, b"SWAPSPACE2", "swap space"),
        ("luks", 0, b"LUKS\xba\xbe", "a LUKS container"),
        ("gpt", 512, b"EFI PART", "a GPT partition table"),
    ] {
        other(name, offset, magic);
        let before = std::fs::read(h.dir.join(name)).unwrap();
        h.fails(4, say, &["mkfs", name]);
        assert_eq!(std::fs::read(h.dir.join(name)).unwrap(), before, "mkfs changed what it refused");
        h.ok(&["mkfs", "-q", "-f", name]);
        assert!(h.ok(&["info", name]).contains("clean"));
    }
    // Real ones, where the tools are there.
    for tool in ["mkfs.ext4", "mkfs.xfs"] {
        let path = ["/usr/sbin", "/sbin"].iter().map(|d| Path::new(d).join(tool)).find(|p| p.exists());
        let Some(path) = path else { continue };
        std::fs::File::create(h.dir.join("real")).unwrap().set_len(400 << 20).unwrap();
        let made = Command::new(path).args(["-q", "real"]).current_dir(&h.dir).output().unwrap();
        assert!(made.status.success(), "{tool}: {}", String::from_utf8_lossy(&made.stderr));
        h.fails(4, if tool == "mkfs.ext4" { "an ext4 filesystem" } else { "an XFS filesystem" }, &["mkfs", "real"]);
        std::fs::remove_file(h.dir.join("real")).unwrap();
    }
}

#[test]
fn mkfs_makes_what_is_asked_for() {
    let h = Home::new("made");
    let uuid = "0f1e2d3c-4b5a-4978-8796-a5b4c3d2e1f0";
    let out = h.ok(&["mkfs", "-f", "-L", "größe", "-U", uuid, "--metadata", "single", "--json", "v"]);
    assert!(out.contains(uuid) && out.contains("\"metadata_copies\":1") && out.contains("größe"), "{out}");
    let info = h.ok(&["info", "v", "--json"]);
    assert!(
        info.contains(uuid) && info.contains("\"label\":\"größe\"") && info.contains("\"metadata_copies\":1"),
        "{info}"
    );
    // -s extends an image, and may be less than it.
    h.ok(&["mkfs", "-q", "-f", "-s", "128M", "v"]);
    assert_eq!(std::fs::metadata(h.dir.join("v")).unwrap().len(), 128 << 20);
    h.ok(&["mkfs", "-q", "-f", "-s", "32M", "v"]);
    assert_eq!(std::fs::metadata(h.dir.join("v")).unwrap().len(), 128 << 20);
    assert!(h.ok(&["info", "v", "--json"]).contains(&format!("\"bytes\":{}", 32 << 20)));
    // By its name, as a link.
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_vexfs"), h.dir.join("mkfs.vexfs")).unwrap();
    let o = Command::new(h.dir.join("mkfs.vexfs")).args(["-s", "16M", "w"]).current_dir(&h.dir).output().unwrap();
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
}

#[test]
fn help_man_and_completions() {
    let h = Home::new("docs");
    for args in [
        &["--help"][..],
        &["search", "--help"],
        &["collection", "create", "--help"],
        &["mkfs", "--help"],
        &["export", "--help"],
    ] {
        assert!(h.ok(args).contains("Usage:"));
    }
    assert!(h.ok(&["--help"]).contains("Exit codes"));
    h.fails(2, "unrecognized subcommand", &["frobnicate"]);
    assert!(h.ok(&["help", "search"]).contains("Usage: vexfs search"));
    for shell in ["bash", "zsh", "fish"] {
        let text = h.ok(&["completions", shell]);
        assert!(
            text.contains("ef-construction") && text.contains("mkfs.vexfs") && text.contains("fsck.vexfs"),
            "{shell}"
        );
    }
    h.ok(&["man", "man"]);
    let pages: Vec<_> = std::fs::read_dir(h.dir.join("man")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!pages.iter().any(|p| p.to_string_lossy().contains("help")), "{pages:?}");
    for page in ["mkfs.vexfs.8", "fsck.vexfs.8", "vexfs.1", "vexfs-search.1", "vexfs-collection-create.1"] {
        assert!(pages.iter().any(|p| p == page), "{page} is missing in {pages:?}");
    }
}

#[test]
fn names_that_are_no_text() {
    use std::os::unix::ffi::OsStrExt;
    let h = Home::new("bytes");
    let name = std::ffi::OsStr::from_bytes(b"v:/x\xff\x1b[2J");
    h.file("f", b"contents");
    let run = |args: &[&std::ffi::OsStr]| {
        Command::new(env!("CARGO_BIN_EXE_vexfs")).args(args).current_dir(&h.dir).output().unwrap()
    };
    assert!(run(&["put".as_ref(), "f".as_ref(), name]).status.success());
    assert_eq!(run(&["cat".as_ref(), name]).stdout, b"contents");
    assert_eq!(h.ok(&["ls", "v:/"]), "x\\xff\\u{1b}[2J\n");
    assert!(h.ok(&["ls", "--json", "v:/"]).contains("\"name_bytes\":\"eP8bWzJK\""));
}

#[test]
fn a_missing_slash_makes_no_directory() {
    let h = Home::new("slash");
    let create = |path: &'static str| ["collection", "create", path, "--dim", "8", "--metric", "cosine"];
    std::fs::create_dir(h.dir.join("host")).unwrap();
    h.fails(2, "write v:/\n", &create("v:"));
    h.fails(2, "write v:/new", &create("v:new"));
    h.fails(3, "not on a mounted VexFS", &create("host/sub"));
    h.fails(2, "write v:/", &["ls", "v:"]);
    h.ok(&create("v:/c"));
    h.ok(&["export", "v:/c", "ex"]);
    h.fails(2, "write v:/", &["import", "v:", "ex"]);
    for name in ["v:", "v:new", "host/sub"] {
        assert!(!h.dir.join(name).exists(), "{name} was made");
    }
    // An import that fails takes the directory in the image with it.
    let mut b = std::fs::read(h.dir.join("ex/collection.json")).unwrap();
    b.splice(..1, *b"{\"m\":1,");
    std::fs::write(h.dir.join("ex/collection.json"), &b).unwrap();
    let o = h.run(&["import", "v:/other", "ex"]);
    if !o.status.success() {
        assert_eq!(h.ok(&["ls", "v:/"]), "c\n");
    }
}

#[test]
fn rows_are_those_of_the_file() {
    let h = Home::new("rows");
    h.collection("c", "8", "l2");
    let mut v: Vec<f32> = (0..40_000).map(|i| i as f32).collect();
    h.file("good.npy", &npy("<f4", false, "(5000, 8)", &f32s(&v)));
    v[4500 * 8 + 3] = f32::NAN;
    h.file("bad.npy", &npy("<f4", false, "(5000, 8)", &f32s(&v)));
    let text = h.fails(2, "bad.npy: row 4500 ", &["insert", "v:/c", "--npy", "bad.npy"]);
    assert!(text.contains("4,000 vectors before it were inserted"), "{text}");
    assert_eq!(h.ok(&["list", "v:/c"]).lines().count(), 4000);
    // Attributes that are too large, and lines that are none.
    let long = format!("{{\"x\": \"{}\"}}\n", "y".repeat(70_000));
    let lines = |bad: &str| {
        let mut s = "{}\n".repeat(5000).into_bytes();
        s.splice(3 * 2500..3 * 2501, bad.bytes());
        s
    };
    h.file("long.jsonl", &lines(&long));
    let text = h.fails(2, "long.jsonl: row 2500 ", &["insert", "v:/c", "--npy", "good.npy", "--attrs", "long.jsonl"]);
    assert!(text.contains("2,000 vectors before it were inserted"), "{text}");
    h.file("odd.jsonl", &lines("{]\n"));
    let text = h.fails(2, "odd.jsonl: line 2501", &["insert", "v:/c", "--npy", "good.npy", "--attrs", "odd.jsonl"]);
    assert!(text.contains("2,000 vectors before it were inserted"), "{text}");
    let ids: String = (0..5000).map(|i| format!("{i}\n")).collect();
    h.file("ids", ids.as_bytes());
    h.fails(2, "long.jsonl: row 2500 ", &["update", "v:/c", "--attrs", "long.jsonl", "--ids", "ids"]);
}

#[test]
fn what_an_early_end_leaves_is_in_the_index() {
    let h = Home::new("early");
    h.ok(&["collection", "create", "v:/c", "--dim", "8", "--metric", "cosine"]);
    let mut v: Vec<f32> = (0..40_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32).collect();
    v[4500 * 8 + 3] = f32::NAN;
    h.file("bad.npy", &npy("<f4", false, "(5000, 8)", &f32s(&v)));
    h.fails(2, "row 4500", &["insert", "v:/c", "--npy", "bad.npy"]);
    assert!(h.ok(&["collection", "info", "v:/c", "--json"]).contains("\"records\":4000"));
    assert!(h.ok(&["collection", "info", "v:/c", "--json"]).contains("\"pending\":0"));
    let o = h.run(&["search", "v:/c", "--vector", "1,2,3,4,5,6,7,8"]);
    assert!(o.stderr.is_empty(), "{}", String::from_utf8_lossy(&o.stderr));
    // The time that indexing takes is said.
    h.file("good.npy", &npy("<f4", false, "(4000, 8)", &f32s(&v[..32_000])));
    assert!(h.ok(&["insert", "v:/c", "--npy", "good.npy", "--json"]).contains("\"indexing_seconds\":"));
    // One that is killed leaves it to the next: a search says so.
    h.ok(&["collection", "create", "v:/d", "--dim", "8", "--metric", "cosine"]);
    let mut child = Command::new(env!("CARGO_BIN_EXE_vexfs"))
        .args(["insert", "v:/d", "--npy", "good.npy"])
        .current_dir(&h.dir)
        .spawn()
        .unwrap();
    let inserted = || {
        let o = h.run(&["info", "v", "--json"]);
        String::from_utf8_lossy(&o.stdout).contains("in use")
    };
    for _ in 0..200 {
        if inserted() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    std::thread::sleep(std::time::Duration::from_millis(150));
    let killed = child.kill().is_ok() && !child.wait().unwrap().success();
    let info = h.ok(&["collection", "info", "v:/d", "--json"]);
    if killed && !info.contains("\"records\":0,") {
        let o = h.run(&["search", "v:/d", "--vector", "1,2,3,4,5,6,7,8"]);
        let text = String::from_utf8_lossy(&o.stderr);
        assert_eq!(text.matches("vexfs collection reindex v:/d").count(), 1, "{text}{info}");
        assert!(h.ok(&["collection", "info", "v:/d"]).contains("vexfs collection reindex v:/d"));
        h.ok(&["collection", "reindex", "v:/d"]);
        assert!(h.run(&["search", "v:/d", "--vector", "1,2,3,4,5,6,7,8"]).stderr.is_empty());
    }
}

#[test]
fn embeddings_that_no_search_would_find() {
    let h = Home::new("embed");
    h.collection("c", "2", "cosine");
    h.file("f", b"x");
    h.ok(&["put", "f", "v:/c"]);
    h.fails(2, "v:/c/f: a zero vector", &["embed", "v:/c/f", "--vector", "0,-0"]);
    h.fails(3, "v:/c/f", &["embed", "v:/c/f", "--show"]);
    h.fails(3, "v:/c/g: no such file", &["embed", "v:/c/g", "--vector", "1"]);
    h.fails(2, "has 1 dimensions", &["embed", "v:/c/f", "--vector", "1"]);
    // For another metric zero is a vector like any other.
    h.collection("l", "2", "l2");
    h.ok(&["put", "f", "v:/l"]);
    h.ok(&["embed", "v:/l/f", "--vector", "0,0"]);
}

#[test]
fn a_put_that_fails_names_the_side() {
    let h = Home::new("put");
    h.file("x.bin", b"x");
    h.fails(3, "v:/nodir/x: no such directory above it", &["put", "x.bin", "v:/nodir/x"]);
    h.fails(4, "v:/.vexfs: the name .vexfs", &["put", "x.bin", "v:/.vexfs"]);
    h.fails(3, "y.bin: No such file", &["put", "y.bin", "v:/x"]);
}

#[test]
fn lost_contents_are_named_and_the_advice_helps() {
    let h = Home::new("lost");
    let contents: Vec<u8> = (0..40_000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    h.file("f", &contents);
    h.ok(&["mkdir", "v:/dir"]);
    h.ok(&["put", "f", "v:/dir/file"]);
    let mut b = std::fs::read(h.dir.join("v")).unwrap();
    let place = (32..b.len() / 4096).map(|n| n * 4096).find(|at| b[*at..].starts_with(&contents[8192..12_288]));
    b[place.unwrap() + 5] ^= 1;
    h.file("v", &b);
    for args in [&["fsck", "-n", "v"][..], &["fsck", "-p", "v"], &["fsck", "-y", "v"], &["scrub", "v"]] {
        let o = h.run(args);
        let text = String::from_utf8_lossy(&[o.stdout, o.stderr].concat()).into_owned();
        assert_eq!(o.status.code(), Some(if args[0] == "scrub" { 7 } else { 4 }), "{text}");
        assert!(text.contains("/dir/file: inode 3: bytes 8192 to 12287 "), "{text}");
        assert!(text.contains("restore or delete the files with lost contents; fsck cannot repair them"), "{text}");
        assert!(!text.contains("fsck.vexfs -"), "{text}");
    }
    let text = String::from_utf8_lossy(&h.run(&["fsck", "--json", "v"]).stdout).into_owned();
    assert!(text.contains("\"clean\":false,\"cleanly_unmounted\":true"), "{text}");
    assert!(text.contains("\"path\":\"/dir/file\",\"lost_from\":8192,\"lost_bytes\":4096"), "{text}");
    // What opening the volume heals counts as repaired, also where something else is left.
    b[1024 * 4096 + 20] ^= 0x40;
    h.file("both", &b);
    let text = String::from_utf8_lossy(&h.run(&["fsck", "-p", "both"]).stdout).into_owned();
    assert!(text.contains("both: 1 error left, 1 repaired; restore"), "{text}");
    h.ok(&["rm", "v:/dir/file"]);
    // What can be repaired is said to be.
    let mut b = std::fs::read(h.dir.join("v")).unwrap();
    b[1024 * 4096 + 20] ^= 0x40;
    h.file("v", &b);
    let text = String::from_utf8_lossy(&h.run(&["fsck", "-n", "v"]).stdout).into_owned();
    assert!(text.contains("superblock in block 1024: is damaged") && text.contains("fsck.vexfs -p v"), "{text}");
    assert!(h.ok(&["info", "v"]).contains("1 damaged, 3 good; repair: fsck.vexfs -p v"));
}

#[test]
fn targets_that_are_no_volume() {
    let h = Home::new("targets");
    assert!(!h.ok(&["info", "v"]).contains("of 4"));
    h.file("empty", b"");
    h.fails(7, "the file is empty", &["info", "empty"]);
    h.fails(8, "the file is empty", &["fsck", "-n", "empty"]);
    h.fails(7, "the file is empty", &["scrub", "empty"]);
    h.fails(2, "neither an image file nor a block device", &["info", "/dev/null"]);
    let whole = std::fs::read(h.dir.join("v")).unwrap();
    h.file("half", &whole[..whole.len() / 2]);
    for (code, args) in
        [(7, &["ls", "half:/"][..]), (7, &["info", "half"]), (7, &["scrub", "half"]), (8, &["fsck", "half"])]
    {
        h.fails(code, "shorter than the volume that was made on it; copy it again", args);
    }
    h.fails(8, "nope: no such file or device\n", &["fsck", "nope"]);
    h.fails(3, "the directory nodir does not exist", &["mkfs", "nodir/b.img", "-s", "64M"]);
    h.fails(2, "too large", &["mkfs", "big", "-s", "9000P"]);
    std::fs::create_dir(h.dir.join("d")).unwrap();
    h.fails(2, "threads: at least 1", &["mount", "v", "d", "-o", "threads=0"]);
    h.collection("c", "2", "l2");
    assert_eq!(h.ok(&["collection", "drop", "v:/c", "--json"]), "{\"path\":\"v:/c\",\"dropped\":true}\n");
}

#[test]
fn data_behind_the_first_megabyte_is_not_overwritten() {
    use std::os::unix::fs::FileExt;
    let h = Home::new("behind");
    let f = std::fs::File::create(h.dir.join("disk")).unwrap();
    f.set_len(64 << 20).unwrap();
    f.write_all_at(&vec![0; 4 << 20], 0).unwrap();
    h.ok(&["mkfs", "-q", "disk"]);
    let f = std::fs::File::create(h.dir.join("disk")).unwrap();
    f.set_len(64 << 20).unwrap();
    f.write_all_at(b"precious", 40 << 20).unwrap();
    h.fails(4, "is a file with contents", &["mkfs", "disk"]);
    h.ok(&["mkfs", "-q", "-f", "disk"]);
}

#[test]
fn wrong_usage_is_one_line() {
    let h = Home::new("usage");
    h.collection("c", "2", "l2");
    h.ok(&["insert", "v:/c", "--vector", "1,2"]);
    for (code, say, args) in [
        (2, "-k must be at least 1", &["search", "v:/c", "--vector", "1,2", "-k", "-1"][..]),
        (2, "-k must be at least 1", &["search", "v:/c", "--vector", "1,2", "-k", "0"]),
        (2, "f1 is no record id", &["get", "v:/c", "f1"]),
        (2, "-7 is no record id", &["get", "v:/c", "-7"]),
        (2, "-7 is no record id", &["delete", "v:/c", "-7"]),
        (2, "'search'", &["serch", "v:/c"]),
        (2, "--dim <D>", &["collection", "create", "v:/d"]),
        (16, "'--bogus'", &["fsck", "--bogus", "v"]),
        (16, "<TARGET>", &["fsck"]),
        (3, "no record 8, 9\n", &["get", "v:/c", "8", "9"]),
    ] {
        let text = h.fails(code, say, args);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.contains("tip:"), "{text}");
        assert!(code == 3 || text.ends_with("--help\n"), "{text}");
    }
    let o = h.run(&["delete", "v:/c", "0", "8", "9"]);
    assert_eq!(String::from_utf8_lossy(&o.stderr), "vexfs: v:/c: no record 8, 9\n");
    h.file("a.jsonl", b"{\"id\": 5, \"x\": 1}\n");
    let o = h.run(&["update", "v:/c", "--attrs", "a.jsonl"]);
    assert_eq!(String::from_utf8_lossy(&o.stderr), "vexfs: v:/c: no record 5\n");
}

#[test]
fn vectors_from_the_standard_input() {
    let h = Home::new("stdin");
    h.collection("c", "2", "l2");
    h.file("v.npy", &npy("<f4", false, "(2, 2)", &f32s(&[1., 2., 3., 4.])));
    for name in ["-", "/dev/stdin"] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_vexfs"))
            .args(["insert", "v:/c", "--npy", name])
            .current_dir(&h.dir)
            .stdin(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let bytes = std::fs::read(h.dir.join("v.npy")).unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), &bytes).unwrap();
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(h.ok(&["list", "v:/c"]).lines().count(), 4);
}

#[test]
fn man_pages_are_whole() {
    let h = Home::new("man");
    h.ok(&["man", "man"]);
    for e in std::fs::read_dir(h.dir.join("man")).unwrap() {
        let path = e.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(!text.contains("EXTRA"), "{path:?}");
        assert!(!text.contains("help(1)"), "{path:?} refers to a page about help");
    }
    assert!(h.dir.join("man/mount.fuse.vexfs.8").exists());
}

/// A loop device that refuses writes; `None` where none can be had.
fn read_only_loop(image: &Path) -> Option<String> {
    let o = Command::new("losetup").args(["-r", "-f", "--show"]).arg(image).output().ok()?;
    o.status.success().then(|| String::from_utf8_lossy(&o.stdout).trim().to_string())
}

#[test]
fn read_only_devices() {
    let h = Home::new("readonly");
    h.collection("c", "2", "l2");
    std::fs::create_dir(h.dir.join("d")).unwrap();
    let Some(device) = read_only_loop(&h.dir.join("v")) else { return };
    let inside = format!("{device}:/c");
    let checks = [
        h.run(&["insert", &inside, "--vector", "1,2"]),
        h.run(&["mkfs", "-f", &device]),
        h.run(&["search", &inside, "--vector", "1,2"]),
        h.run(&["mount", &device, "d"]),
    ];
    if checks[3].status.success() {
        h.ok(&["umount", "d"]);
    }
    let _ = Command::new("losetup").args(["-d", &device]).status();
    let text = |o: &Output| String::from_utf8_lossy(&o.stderr).into_owned();
    for o in &checks[..2] {
        assert_eq!(o.status.code(), Some(5), "{}", text(o));
        assert!(text(o).contains("the device is read-only"), "{}", text(o));
    }
    assert!(checks[2].status.success(), "{}", text(&checks[2]));
    // Mounted without changes, unless this machine has no FUSE.
    assert!(!text(&checks[3]).contains("I/O error"), "{}", text(&checks[3]));
}

// SPDX-License-Identifier: GPL-2.0-only
//! A volume driven by many threads at once, against a model; reopened after a clean end, after a crash of the
//! process and after a power cut.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use vexfs_core::op::{Cred, Op, Reply, SetAttr};
use vexfs_core::proto::wire;
use vexfs_core::Error;
use vexfs_embedded::testing::{settle, PowerCut, Random};
use vexfs_embedded::{make, FileDevice, Files, Host, HostOptions, MakeOptions, MemDevice, OpenErrorKind};

const MIB: u64 = 1 << 20;

fn options() -> HostOptions {
    // Little log and little cache, so that checkpoints and misses happen.
    HostOptions { cache_bytes: 2 << 20, log_bytes: 1 << 20, ..HostOptions::default() }
}

fn fresh(size: u64) -> Arc<MemDevice> {
    let device = Arc::new(MemDevice::new(vec![0; size as usize]));
    make(&device, &MakeOptions::default()).unwrap();
    device
}

fn open(device: Arc<MemDevice>) -> Host {
    Host::open(Box::new(device), "memory", &options()).unwrap()
}

/// Files of one directory: name to contents.
type Model = BTreeMap<Vec<u8>, Vec<u8>>;

/// One random change of the directory `dir`, in the volume and in the model.
fn act(files: &Files, host: &Host, dir: &str, model: &mut Model, r: &mut Random) {
    let path = |name: &[u8]| [dir.as_bytes(), b"/", name].concat();
    let name = format!("file-{}", r.below(40)).into_bytes();
    let known = model.contains_key(&name);
    match r.below(10) {
        0..=3 => {
            let data = vec![r.draw() as u8; r.below(30_000) as usize];
            files.write(&path(&name), 0o644, &data).unwrap();
            model.insert(name, data);
        }
        4 if known => {
            let attr = files.resolve(&path(&name), true).unwrap();
            let (at, byte) = (r.below(20_000), r.draw() as u8);
            let data = vec![byte; 1 + r.below(9000) as usize];
            files.write_at(attr.ino, at, &data).unwrap();
            let m = model.get_mut(&name).unwrap();
            let end = at as usize + data.len();
            m.resize(m.len().max(end), 0);
            m[at as usize..end].copy_from_slice(&data);
        }
        5 if known => {
            let attr = files.resolve(&path(&name), true).unwrap();
            let size = r.below(40_000);
            host.call(Op::SetAttr { ino: attr.ino, set: SetAttr { size: Some(size), ..SetAttr::default() } }).unwrap();
            model.get_mut(&name).unwrap().resize(size as usize, 0);
        }
        6 if known => {
            files.remove(&path(&name)).unwrap();
            model.remove(&name);
        }
        7 if known => {
            let to = format!("file-{}", r.below(40)).into_bytes();
            let d = files.resolve(dir.as_bytes(), true).unwrap().ino;
            host.call(Op::Rename { dir: d, name: name.clone(), new_dir: d, new_name: to.clone(), flags: 0 }).unwrap();
            let data = model.remove(&name).unwrap();
            model.insert(to, data);
        }
        8 if !known => assert_eq!(files.remove(&path(&name)), Err(Error::NotFound)),
        9 if r.below(4) == 0 => files.sync().unwrap(),
        _ => {
            let got = files.read(&path(&name)).ok();
            assert_eq!(got.as_ref(), model.get(&name), "{dir}/{}", String::from_utf8_lossy(&name));
        }
    }
}

fn compare(host: &Host, dir: &str, model: &Model) {
    let files = Files::new(host);
    let d = files.resolve(dir.as_bytes(), true).unwrap();
    let mut names: Vec<Vec<u8>> = files.list(d.ino, true).unwrap().into_iter().map(|e| e.name).collect();
    names.sort();
    assert_eq!(names, model.keys().cloned().collect::<Vec<_>>());
    for (name, data) in model {
        let got = files.read(&[dir.as_bytes(), b"/", name].concat()).unwrap();
        assert!(&got == data, "{dir}/{}: {} bytes, not {}", String::from_utf8_lossy(name), got.len(), data.len());
    }
}

/// Lets `threads` threads act on a directory each.
fn act_all(host: &Host, models: &mut [Model], steps: u64, seed: u64) {
    std::thread::scope(|scope| {
        for (i, model) in models.iter_mut().enumerate() {
            scope.spawn(move || {
                let files = Files::new(host);
                let dir = format!("/dir-{i}");
                files.mkdir_all(dir.as_bytes(), 0o755).unwrap();
                let mut r = Random::new(seed * 1000 + i as u64);
                for _ in 0..steps {
                    act(&files, host, &dir, model, &mut r);
                }
            });
        }
    });
}

#[test]
fn many_threads_and_reopening() {
    let device = fresh(256 * MIB);
    let mut models = vec![Model::new(); 6];
    for round in 0..4 {
        let host = open(device.clone());
        for (i, model) in models.iter().enumerate().filter(|_| round > 0) {
            compare(&host, &format!("/dir-{i}"), model);
        }
        act_all(&host, &mut models, 250, round);
        for (i, model) in models.iter().enumerate() {
            compare(&host, &format!("/dir-{i}"), model);
        }
        if round % 2 == 0 {
            host.close().unwrap();
        } // else: dropped without closing, like a process that dies
    }
    let host = open(device);
    for (i, model) in models.iter().enumerate() {
        compare(&host, &format!("/dir-{i}"), model);
    }
    let files = Files::new(&host);
    for i in 0..models.len() {
        files.remove_all(format!("/dir-{i}").as_bytes()).unwrap();
    }
    assert!(files.list(vexfs_core::op::ROOT, false).unwrap().is_empty());
    host.close().unwrap();
}

#[test]
fn paths() {
    let host = open(fresh(64 * MIB));
    let files = Files::new(&host);
    files.mkdir_all(b"/a/b/c", 0o755).unwrap();
    files.write(b"a/b/c/x", 0o600, b"hello").unwrap();
    let root = vexfs_core::op::ROOT;
    let link = |name: &[u8], target: &[u8]| {
        host.call(Op::Symlink { dir: root, name: name.to_vec(), target: target.to_vec(), uid: 0, gid: 0 }).unwrap();
    };
    link(b"short", b"a/b");
    link(b"absolute", b"/a/../a/b/c/x");
    link(b"loop", b"loop");
    link(b"dangling", b"/nowhere");
    for p in [&b"/short/c/x"[..], b"absolute", b"//a///b/./c/../c/x", b"/../a/b/c/x", b"short/../b/c/x"] {
        assert_eq!(files.read(p).unwrap(), b"hello", "{}", String::from_utf8_lossy(p));
    }
    let error = |p: &[u8]| files.resolve(p, true).map(|a| a.ino);
    assert_eq!(error(b"/a/b/c/x/"), Err(Error::NotDirectory));
    assert_eq!(error(b"/a/b/c/x/y"), Err(Error::NotDirectory));
    assert_eq!(error(b"/a/q/c"), Err(Error::NotFound));
    assert_eq!(error(b"loop"), Err(Error::Invalid));
    assert_eq!(error(b"dangling"), Err(Error::NotFound));
    assert!(files.resolve(b"dangling", false).is_ok());
    assert_eq!(files.mkdir(b"/a/b", 0o755).map(|a| a.ino), Err(Error::Exists));
    assert_eq!(files.remove(b"/a/b"), Err(Error::NotEmpty));
    assert_eq!(files.remove(b"/"), Err(Error::Invalid));
    files.remove(b"short").unwrap();
    files.remove_all(b"/a").unwrap();
    assert_eq!(error(b"/a"), Err(Error::NotFound));
    assert!(matches!(host.call(Op::StatFs), Ok(Reply::StatFs(_))));
    host.close().unwrap();
}

#[test]
fn what_cannot_be_opened_is_explained() {
    let kind = |bytes: Vec<u8>| {
        let device = Box::new(MemDevice::new(bytes));
        match Host::open(device, "memory", &options()) {
            Ok(_) => panic!("opened"),
            Err(e) => (e.kind(), e.to_string()),
        }
    };
    assert_eq!(kind(Vec::new()).0, OpenErrorKind::Empty);
    assert_eq!(kind(vec![0; 5000]).0, OpenErrorKind::Empty);
    let (k, text) = kind(vec![0; 32 << 20]);
    assert_eq!(k, OpenErrorKind::NotVexfs);
    assert!(text.contains("mkfs.vexfs memory"), "{text}");
    let mut half = fresh(64 * MIB).image();
    half.truncate(32 << 20);
    let (k, text) = kind(half);
    assert_eq!(k, OpenErrorKind::Truncated);
    assert!(text.contains("shorter"), "{text}");
}

#[test]
fn a_read_only_image_is_read_and_not_written() {
    let path = std::env::temp_dir().join(format!("vexfs-host-{}-ro", std::process::id()));
    let device = FileDevice::create(&path, 64 * MIB).unwrap();
    make(&device, &MakeOptions::default()).unwrap();
    drop(device);
    let host = Host::open_path(&path, &options()).unwrap();
    Files::new(&host).write(b"/x", 0o644, b"kept").unwrap();
    drop(host); // with a log to replay
    let before = std::fs::read(&path).unwrap();
    let host = Host::open_path(&path, &HostOptions { read_only: true, ..options() }).unwrap();
    assert!(host.read_only());
    let files = Files::new(&host);
    assert_eq!(files.read(b"/x").unwrap(), b"kept");
    assert_eq!(files.mkdir(b"/y", 0o755).map(|a| a.ino), Err(Error::ReadOnly));
    drop(host);
    assert!(before == std::fs::read(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
}

/// Acts, remembers the models at each sync, loses power, and says whether everything durable is there
/// (or what is missing).
fn power_cut(seed: u64, flushes: bool) -> Result<(), String> {
    let base = std::env::temp_dir().join(format!("vexfs-cut-{}-{seed}-{flushes}", std::process::id()));
    let side = PathBuf::from(format!("{}.side", base.display()));
    let file = FileDevice::create(&base, 64 * MIB).unwrap();
    make(&file, &MakeOptions::default()).unwrap();
    let cut = PowerCut::new(file, &side).unwrap();
    let device = Arc::new(if flushes { cut } else { cut.without_flushes() });
    let host = Host::open(Box::new(device.clone()), "image", &options()).unwrap();
    let mut r = Random::new(seed);
    let mut written: Vec<(String, Vec<u8>)> = Vec::new();
    {
        let files = Files::new(&host);
        for i in 0..10 + r.below(60) {
            let (name, data) = (format!("/f{i}"), vec![i as u8; 1 + r.below(40_000) as usize]);
            files.write(name.as_bytes(), 0o644, &data).unwrap();
            if r.below(3) == 0 {
                files.sync().unwrap();
                written.push((name, data));
            }
        }
    }
    drop(host);
    // The destructor would let everything arrive.
    std::mem::forget(device);
    settle(&base, &side, seed).unwrap();
    // The forgotten device still holds the lock of the file: look at a copy.
    let image = MemDevice::new(std::fs::read(&base).unwrap());
    std::fs::remove_file(&base).unwrap();
    let host = Host::open(Box::new(image), "image", &options()).map_err(|e| e.to_string())?;
    let files = Files::new(&host);
    for (name, data) in &written {
        match files.read(name.as_bytes()) {
            Ok(got) if &got == data => {}
            Ok(_) => return Err(format!("{name}: other contents")),
            Err(e) => return Err(format!("{name}: {e}")),
        }
    }
    host.close().map_err(|e| e.to_string())
}

#[test]
fn a_power_cut_loses_nothing_durable() {
    for seed in 0..25 {
        power_cut(seed, true).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
    }
}

#[test]
fn without_flushes_a_power_cut_does_lose() {
    let lost = (0..25).filter(|seed| power_cut(*seed, false).is_err()).count();
    assert!(lost >= 5, "only {lost} of 25 power cuts without flushes lost data: the test proves nothing");
}

#[test]
fn a_full_volume_stays_usable() {
    let device = fresh(24 * MIB);
    let host = open(device.clone());
    let files = Files::new(&host);
    let mut kept = Vec::new();
    let full = loop {
        let name = format!("/big-{}", kept.len());
        let data = vec![kept.len() as u8; 300_000];
        match files.write(name.as_bytes(), 0o644, &data) {
            Ok(()) => kept.push((name, data)),
            Err(e) => break e,
        }
        assert!(kept.len() < 200);
    };
    assert_eq!(full.to_string(), Error::NoSpace.to_string());
    for (name, data) in &kept {
        assert!(&files.read(name.as_bytes()).unwrap() == data);
    }
    // Room again after deleting, in the same session.
    for (name, _) in kept.drain(..5) {
        files.remove(name.as_bytes()).unwrap();
    }
    files.write(b"/again", 0o644, &vec![1; 1 << 20]).unwrap();
    host.close().unwrap();
    let host = open(device.clone());
    let files = Files::new(&host);
    for (name, data) in &kept {
        assert!(&files.read(name.as_bytes()).unwrap() == data);
    }
    assert_eq!(files.read(b"/again").unwrap().len(), 1 << 20);
    host.close().unwrap();
}

/// A request frame: head, structure, sections, each padded.
fn frame(op: u16, parts: &[&[u8]]) -> Vec<u8> {
    let mut f = vec![0; wire::RequestHead::SIZE];
    for p in parts {
        f.extend_from_slice(p);
        f.resize(wire::pad(f.len()), 0);
    }
    let head = wire::RequestHead { len: f.len() as u32, version: wire::VERSION, op, tag: 9, ..Default::default() };
    f[..wire::RequestHead::SIZE].copy_from_slice(&head.bytes());
    f
}

#[test]
fn a_search_in_parts_gives_what_single_searches_give() {
    const DIM: u32 = 8;
    let host = open(fresh(64 * MIB));
    let dir = Files::new(&host).mkdir(b"/c", 0o755).unwrap().ino;
    let ask = |f: Vec<u8>| {
        let r = host.request(dir, Cred::default(), f).unwrap();
        let head = wire::ReplyHead::parse(&r).unwrap();
        assert_eq!((head.status, head.len as usize), (0, r.len()), "{}", String::from_utf8_lossy(&r[32..]));
        r[wire::ReplyHead::SIZE..].to_vec()
    };
    let mut r = Random::new(3);
    let mut vectors = |n: usize| -> Vec<u8> {
        (0..n * DIM as usize).flat_map(|_| ((r.below(2000) as f32 - 1000.0) / 77.0).to_le_bytes()).collect()
    };
    for (name, kind) in [("flat", wire::index::FLAT), ("hnsw", wire::index::HNSW)] {
        let schema = wire::Schema { dim: DIM, metric: wire::metric::L2, element: 1, index: kind, ..Default::default() };
        ask(frame(wire::op::CREATE, &[&schema.bytes()]));
        let insert = wire::Insert { count: 1500, dim: DIM, ..Default::default() };
        ask(frame(wire::op::INSERT, &[&insert.bytes(), &vectors(1500)]));
        // Between two searches nothing may go into the index.
        let pending = || wire::CollectionInfo::parse(&ask(frame(wire::op::INFO, &[]))).unwrap().pending;
        while pending() > 0 {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        let queries = vectors(150);
        let search = |q: &[u8]| {
            let count = (q.len() / DIM as usize / 4) as u32;
            let s = wire::Search { count, dim: DIM, k: 5, ..Default::default() };
            ask(frame(wire::op::SEARCH, &[&s.bytes(), q]))
        };
        let together = search(&queries);
        let total = wire::SearchReply::parse(&together).unwrap();
        let mut single = Vec::new();
        let mut evaluations = 0;
        for q in queries.chunks(DIM as usize * 4) {
            let r = search(q);
            evaluations += wire::SearchReply::parse(&r).unwrap().evaluations;
            single.extend_from_slice(&r[wire::SearchReply::SIZE..]);
        }
        assert_eq!((total.count, total.evaluations), (150, evaluations), "{name}");
        assert!(together[wire::SearchReply::SIZE..] == single, "{name}");
        // A wrong query is named by its number in the whole batch.
        let mut wrong = queries.clone();
        wrong[100 * DIM as usize * 4..][..4].copy_from_slice(&f32::NAN.to_le_bytes());
        let s = wire::Search { count: 150, dim: DIM, k: 5, ..Default::default() };
        let reply = host.request(dir, Cred::default(), frame(wire::op::SEARCH, &[&s.bytes(), &wrong])).unwrap();
        let head = wire::ReplyHead::parse(&reply).unwrap();
        assert_eq!((head.status, head.position), (22, 100), "{}", String::from_utf8_lossy(&reply[32..]));
        ask(frame(wire::op::DROP, &[]));
    }
    host.close().unwrap();
}

// SPDX-License-Identifier: GPL-2.0-only
//! Images with random bytes changed: whatever is read is right or an error, never other bytes, a panic or a
//! hang. `FLIPPED=1000 cargo test -p vexfs-embedded --test flipped` looks at more of them.

use std::sync::mpsc;
use std::time::Duration;
use vexfs_core::engine::State;
use vexfs_core::op::{Op, Reply};
use vexfs_core::Error;
use vexfs_embedded::testing::Random;
use vexfs_embedded::{make, Files, FilesError, Host, HostOptions, MakeOptions, MemDevice};

const SIZE: usize = 24 << 20;

fn name(i: u64) -> Vec<u8> {
    format!("/d{}/file-{i}", i % 7).into_bytes()
}

fn contents(i: u64) -> Vec<u8> {
    let mut r = Random::new(i);
    (0..r.below(60_000)).map(|_| r.draw() as u8).collect()
}

const FILES: u64 = 150;

/// Files from here on are only in the log: damage to it may end the log early. What is there then is a
/// prefix of what was done.
const LOGGED: u64 = FILES / 2;

/// A volume with files, made in two sessions, so that tree, log and data all hold something.
fn image(copies: u32) -> Vec<u8> {
    let device = std::sync::Arc::new(MemDevice::new(vec![0; SIZE]));
    make(&device, &MakeOptions { copies, ..MakeOptions::default() }).unwrap();
    for half in 0..2 {
        let host = Host::open(Box::new(device.clone()), "memory", &HostOptions::default()).unwrap();
        let files = Files::new(&host);
        for i in half * LOGGED..(half + 1) * LOGGED {
            files.mkdir_all(format!("/d{}", i % 7).as_bytes(), 0o755).unwrap();
            files.write(&name(i), 0o644, &contents(i)).unwrap();
            let ino = files.resolve(&name(i), true).unwrap().ino;
            let value = vec![i as u8; 2000];
            host.call(Op::SetXattr { ino, name: b"user.x".to_vec(), value, flags: 0 }).unwrap();
        }
        if half == 0 {
            host.close().unwrap();
        } else {
            host.call(Op::Sync).unwrap();
        }
    }
    device.image()
}

#[derive(Default, Debug)]
struct Seen {
    refused: u32,
    whole: u32,
    damaged: u32,
}

/// Opens and reads everything, changes something, and opens and reads again.
fn look(bytes: Vec<u8>, seen: &mut Seen) {
    let device = std::sync::Arc::new(MemDevice::new(bytes));
    let mut errors = 0;
    for round in 0..2 {
        let host = match Host::open(Box::new(device.clone()), "memory", &HostOptions::default()) {
            Ok(h) => h,
            Err(e) => {
                assert!(e.to_string().starts_with("memory: "), "{e}");
                seen.refused += 1;
                return;
            }
        };
        let files = Files::new(&host);
        let mut ended = false;
        for i in 0..FILES {
            let found = files.read(&name(i));
            let may_end = i >= LOGGED;
            match found {
                Ok(data) if data == contents(i) => assert!(!ended, "file {i} is there, an earlier one is not"),
                Ok(data) if may_end && data.is_empty() => ended = true,
                Ok(data) => panic!("file {i}: {} wrong bytes", data.len()),
                Err(FilesError::Volume(Error::NotFound)) if may_end => ended = true,
                Err(FilesError::Volume(Error::Corrupt)) => errors += 1,
                Err(e) => panic!("file {i}: {e}"),
            }
            if let Ok(a) = files.resolve(&name(i), true) {
                match host.call(Op::GetXattr { ino: a.ino, name: b"user.x".to_vec() }) {
                    Ok(Reply::Bytes(b)) => assert!(b == vec![i as u8; 2000], "attribute of {i}: wrong bytes"),
                    Err(Error::NoAttribute) if may_end => ended = true,
                    Err(Error::Corrupt) => errors += 1,
                    other => panic!("attribute of {i}: {other:?}"),
                }
            }
        }
        match files.write(format!("/new-{round}").as_bytes(), 0o644, b"new") {
            Ok(()) => assert_eq!(files.read(format!("/new-{round}").as_bytes()).unwrap(), b"new"),
            Err(FilesError::Volume(Error::Corrupt | Error::Aborted | Error::ReadOnly)) => errors += 1,
            Err(e) => panic!("a new file: {e}"),
        }
        match host.call(Op::Close) {
            Ok(_) => assert_eq!(host.state(), State::Closed),
            Err(Error::Corrupt | Error::Aborted) => errors += 1,
            Err(e) => panic!("closing: {e}"),
        }
    }
    if errors == 0 {
        seen.whole += 1;
    } else {
        seen.damaged += 1;
    }
}

fn run(copies: u32, count: u64) -> Seen {
    let whole = image(copies);
    let mut seen = Seen::default();
    for seed in 0..count {
        let mut bytes = whole.clone();
        let mut r = Random::new(seed + 1_000_000 * u64::from(copies));
        // One byte, some, or many, where something is; or all over.
        let used: Vec<usize> = (0..SIZE / 4096).filter(|b| bytes[b * 4096..][..4096].iter().any(|x| *x != 0)).collect();
        for _ in 0..[1, 5, 50, 500][r.below(4) as usize] {
            let block = if r.below(4) == 0 {
                r.below((SIZE / 4096) as u64) as usize
            } else {
                used[r.below(used.len() as u64) as usize]
            };
            let at = block * 4096 + r.below(4096) as usize;
            bytes[at] ^= 1 << r.below(8);
        }
        let (done, wait) = mpsc::channel();
        let worker = std::thread::spawn(move || {
            let mut seen = Seen::default();
            look(bytes, &mut seen);
            let _ = done.send(());
            seen
        });
        if let Err(mpsc::RecvTimeoutError::Timeout) = wait.recv_timeout(Duration::from_secs(120)) {
            panic!("copies {copies}, seed {seed}: hangs");
        }
        match worker.join() {
            Ok(s) => {
                seen.refused += s.refused;
                seen.whole += s.whole;
                seen.damaged += s.damaged;
            }
            Err(_) => panic!("copies {copies}, seed {seed}"),
        }
    }
    seen
}

fn count() -> u64 {
    std::env::var("FLIPPED").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

#[test]
fn two_copies_of_metadata() {
    let seen = run(2, count());
    assert!(seen.whole > 0 && seen.damaged > 0, "{seen:?}");
    // A few changed bytes never hit both copies of the same block, so hardly an image is refused.
    assert!(seen.refused * 10 <= count() as u32, "{seen:?}");
}

#[test]
fn one_copy_of_metadata() {
    let seen = run(1, count());
    assert!(seen.damaged + seen.refused > 0, "{seen:?}");
}

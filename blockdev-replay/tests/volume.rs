// SPDX-License-Identifier: GPL-2.0-only
//! Power cuts of a small volume whose writes were logged: what was durable when the power went is there.

use blockdev_replay::cut::Cut;
use blockdev_replay::disk::Request;
use blockdev_replay::log::{Log, LogWriter, Recorder};
use blockdev_replay::verify::{check, recover, verify, Disk, Plan};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use vexfs_embedded::testing::Random;
use vexfs_embedded::{make, Files, Host, HostOptions, MakeOptions, MemDevice};

const SIZE: u64 = 32 << 20;

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("vexfs-replay-{}-{name}", std::process::id()))
}

/// A file as it was made durable: the number of log entries at that time, and its contents.
type Durable = BTreeMap<String, Vec<(u64, Option<Vec<u8>>)>>;

/// Makes a volume, then writes, renames and removes files; gives the log, the entries of mkfs and what was durable when.
fn record(name: &str, steps: u64, seed: u64) -> (PathBuf, u64, Durable) {
    let path = scratch(name);
    let device = Arc::new(Recorder::new(MemDevice::new(vec![0; SIZE as usize]), LogWriter::create(&path).unwrap()));
    make(&*device, &MakeOptions::default()).unwrap();
    let made = device.log().entries();
    let options = HostOptions { log_bytes: 1 << 20, ..HostOptions::default() };
    let host = Host::open(Box::new(device.clone()), "test", &options).unwrap();
    let files = Files::new(&host);
    let mut random = Random::new(seed);
    let mut durable = Durable::new();
    let mut now: BTreeMap<String, Option<Vec<u8>>> = BTreeMap::new();
    for n in 0..steps {
        let name = format!("/f{}", random.below(12));
        if random.below(4) == 0 && now.get(&name).is_some_and(|x| x.is_some()) {
            files.remove(name.as_bytes()).unwrap();
            now.insert(name, None);
        } else {
            // Made anew, so that the state between two syncs is either the old or the new file.
            let data: Vec<u8> = (0..1 + random.below(30_000)).map(|_| random.draw() as u8).collect();
            if now.get(&name).is_some_and(|x| x.is_some()) {
                files.remove(name.as_bytes()).unwrap();
            }
            files.write(name.as_bytes(), 0o644, &data).unwrap();
            now.insert(name, Some(data));
        }
        if random.below(3) == 0 || n + 1 == steps {
            files.sync().unwrap();
            let entries = device.log().entries();
            for (name, state) in &now {
                durable.entry(name.clone()).or_default().push((entries, state.clone()));
            }
        }
    }
    drop(host); // as a crash would leave it
    (path, made, durable)
}

/// What is wrong with the files after a cut at `at`: a file must be in a state that is not older than its last durable one.
fn wrong(disk: &Disk, cut: &Cut, durable: &Durable) -> Option<String> {
    let trial = disk.trial(&disk.durable(cut.at), cut);
    let host = match Host::open(Box::new(trial), "test", &HostOptions { helpers: 1, ..HostOptions::default() }) {
        Ok(h) => h,
        Err(e) => return Some(e.to_string()),
    };
    let files = Files::new(&host);
    for (name, states) in durable {
        let sure = states.iter().rposition(|(n, _)| *n as usize <= cut.at);
        // The next durable state may be there already, or an empty or partial file on the way to it: then the
        // states differ. Only files that stay the same are compared.
        let Some(sure) = sure else { continue };
        let want = &states[sure].1;
        if states.get(sure + 1).is_none_or(|next| next.1 != *want) {
            continue;
        }
        let got = files.read(name.as_bytes()).ok();
        if got != *want {
            return Some(format!("{name}: {:?} bytes, not {:?}", got.map(|g| g.len()), want.as_ref().map(|w| w.len())));
        }
    }
    None
}

fn disk(path: &PathBuf) -> Disk {
    Disk::new(Arc::new(Log::open(path).unwrap()), None, None).unwrap()
}

#[test]
fn every_cut_recovers_and_nothing_durable_is_missing() {
    let (path, made, durable) = record("every", 60, 1);
    let mut disk = disk(&path);
    assert_eq!(disk.len, SIZE);
    let begins = disk.volume_begins().unwrap();
    assert!(begins > 0 && begins <= made as usize, "the volume begins at entry {begins} of {made} that mkfs wrote");
    disk.start = made as usize;
    let entries = disk.log.entries.len();
    let everywhere =
        Plan { places: (disk.start..=entries).collect(), random: 2, exhaustive: 0, recovery: 1, seed: 9, jobs: 2 };
    let closely = Plan {
        places: (disk.start..=entries).step_by(29).collect(),
        random: 0,
        exhaustive: 2,
        recovery: 0,
        ..everywhere.clone()
    };
    for plan in [everywhere, closely] {
        let outcome = disk.run(&plan, |_| ());
        let bad: Vec<String> = outcome.bad.iter().map(|b| format!("{}: {}", b.cut, b.why)).collect();
        assert!(bad.is_empty(), "{} of {}: {bad:#?}", bad.len(), outcome.states);
        let (whole, torn, lost) = outcome.writes;
        let some = whole > 10 && torn > 10 && lost > 10;
        assert!(some && outcome.states >= 2 * plan.places.len(), "{} states, {whole} {torn} {lost}", outcome.states);
    }
    for at in (disk.start..=entries).step_by(3) {
        let volatile = disk.durable(at).volatile(&disk.log);
        for cut in [Cut::none(&volatile, at), Cut::all(&volatile, at), Cut::random(&disk.log, &volatile, at, 3)] {
            assert_eq!(wrong(&disk, &cut, &durable), None, "{cut}");
        }
    }
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn a_disk_that_ignores_flushes_loses() {
    let (path, made, durable) = record("canary", 60, 2);
    let mut disk = disk(&path);
    disk.start = made as usize;
    disk.flushes = false;
    let entries = disk.log.entries.len();
    let mut noticed = 0;
    let mut tried = 0;
    for at in (disk.start..=entries).step_by(4) {
        let d = disk.durable(at);
        let volatile = d.volatile(&disk.log);
        for seed in 0..3 {
            let cut = Cut::random(&disk.log, &volatile, at, seed);
            tried += 1;
            if verify(disk.trial(&d, &cut), 0, 0).is_err() || wrong(&disk, &cut, &durable).is_some() {
                noticed += 1;
            }
        }
    }
    assert!(noticed * 5 > tried, "only {noticed} of {tried} cuts without flushes were noticed");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn the_program_lists_builds_and_checks() {
    let (path, _, durable) = record("cli", 30, 3);
    let log = path.to_str().unwrap().to_string();
    let run = |args: &[&str]| {
        let p = Command::new(env!("CARGO_BIN_EXE_blockdev-replay")).args(args).output().unwrap();
        (
            p.status.code(),
            String::from_utf8_lossy(&p.stdout).into_owned(),
            String::from_utf8_lossy(&p.stderr).into_owned(),
        )
    };
    let entries = Log::open(&path).unwrap().entries.len();
    let (code, out, _) = run(&["list", &log]);
    assert_eq!((code, out.lines().count()), (Some(0), entries));
    let (code, out, _) = run(&["list", &log, "--json", "--from", "2", "--to", "5"]);
    assert!(code == Some(0) && out.lines().count() == 3 && out.contains("\"entry\":4"), "{out}");
    let (code, out, _) = run(&["info", &log, "--json"]);
    assert!(code == Some(0) && out.contains(&format!("\"entries\":{entries}")), "{out}");

    let image = scratch("image");
    let (code, out, err) = run(&["build", &log, "-o", image.to_str().unwrap()]);
    assert!(code == Some(0) && out.contains("lost"), "{out}{err}");
    let host = Host::open_path(&image, &HostOptions::default()).unwrap();
    for (name, states) in &durable {
        assert_eq!(Files::new(&host).read(name.as_bytes()).ok(), states.last().unwrap().1, "{name}");
    }
    host.close().unwrap();

    let (code, out, err) = run(&["check", &log, "--random", "20", "--recovery", "1", "--jobs", "2"]);
    assert!(code == Some(0) && out.contains("20 states") && out.contains(" 0 did not pass"), "{out}{err}");
    let (code, out, err) = run(&["check", &log, "--at", &entries.to_string(), "--keep", "all"]);
    assert!(code == Some(0) && out.contains("recovered and clean"), "{out}{err}");
    let (code, out, _) = run(&["check", &log, "--ignore-flushes", "--every", "5", "--subsets", "3", "--json"]);
    assert!(code == Some(1) && out.contains("\"why\""), "without flushes something has to be wrong: {out}");
    for (args, want) in [
        (&["check", &log, "--at", "1000000"][..], 2),
        (&["check", &log, "--at", &entries.to_string(), "--keep", "1"], 2),
        (&["list", "/nonexistent"], 3),
        (&["info", image.to_str().unwrap()], 3),
        (&["frobnicate"], 2),
    ] {
        let (code, _, err) = run(args);
        assert!(code == Some(want) && !err.is_empty(), "{args:?}: {code:?} {err}");
    }
    for p in [path, image] {
        std::fs::remove_file(p).unwrap();
    }
}

#[test]
fn cuts_just_after_mkfs_and_everywhere_in_recovery() {
    let (path, made, _) = record("early", 4, 4);
    let mut disk = disk(&path);
    disk.start = made as usize;
    let mut tried = 0;
    for at in disk.start..(disk.start + 12).min(disk.log.entries.len()) {
        let durable = disk.durable(at);
        let cut = Cut::all(&durable.volatile(&disk.log), at);
        let trial = Arc::new(disk.trial(&durable, &cut));
        recover(&trial).unwrap();
        let trace = trial.trace();
        for n in 1..=trace.len() {
            for keep in [false, true] {
                let flushed = trace[..n].iter().rposition(|r| matches!(r, Request::Flush)).unwrap_or(0);
                let sure = |i: usize| i < flushed || matches!(trace[i], Request::WriteDurable(..));
                let again = Arc::new(trial.again(&trace[..n], |i, _| keep || sure(i)));
                let place = format!("{cut}, then {n} requests into recovery");
                check(&again).unwrap_or_else(|e| panic!("{place}: {e}"));
                recover(&again).unwrap_or_else(|e| panic!("{place}: {e}"));
                check(&again).unwrap_or_else(|e| panic!("{place}, recovered: {e}"));
                tried += 1;
            }
        }
    }
    assert!(tried > 100, "{tried}");
    std::fs::remove_file(&path).unwrap();
}

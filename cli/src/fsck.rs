// SPDX-License-Identifier: GPL-2.0-only
//! fsck.vexfs: runs the core's checker over a device and says what it found. Its exit codes are those of fsck(8).

use crate::args::Fsck;
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::show;
use serde_json::{json, Value};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::process::ExitCode;
use vexfs_core::check::{Check, Figures, Finding, Mode, Options, Place, Repair};
use vexfs_core::format::BLOCK;
use vexfs_core::io::{Io, IoError, IoKind};
use vexfs_core::op::ROOT;
use vexfs_core::Error;
use vexfs_embedded::{Access, Device, FileDevice, Files, Host, HostOptions, OpenError, OpenErrorKind};

const REPAIRED: u8 = 1;
const LEFT: u8 = 4;
const OPERATIONAL: u8 = 8;
const USAGE: u8 = 16;

/// Says what is wrong with the command line of `program`; help and version are no mistakes.
pub fn usage(program: &str, e: &clap::Error) -> ExitCode {
    crate::fail::usage(program, e, USAGE)
}

/// Checks, and repairs if asked to.
pub fn run(a: &Fsck) -> ExitCode {
    match check(a) {
        Ok(code) => ExitCode::from(code),
        Err(e) => {
            eprintln!("fsck.vexfs: {e}");
            ExitCode::from(OPERATIONAL)
        }
    }
}

fn check(a: &Fsck) -> Done<u8> {
    let mode = match (a.preen, a.yes) {
        (_, true) => Mode::All,
        (true, _) => Mode::Safe,
        _ => Mode::Look,
    };
    let name = a.target.display().to_string();
    let open = |access: Access| -> Done<FileDevice> {
        FileDevice::open(&a.target, access).map_err(|e| match e.kind() {
            OpenErrorKind::NotFound => Failure::new(code::NOT_FOUND, format!("{name}: no such file or device")),
            _ => e.into(),
        })
    };
    let look = |access: Access, mode: Mode| -> Done<(Figures, Vec<Finding>)> {
        let device = open(access)?;
        run_check(&device, Options { mode, metadata_only: false }, &name)
    };
    if mode == Mode::Look {
        let (figures, findings) = look(Access::ReadOnly, mode)?;
        return report(a, &name, &figures, &findings);
    }
    // Whoever may not write is told so before anything is looked at.
    drop(open(Access::ReadWrite)?);
    let before = look(Access::ReadOnly, Mode::Look);
    match &before {
        Ok((figures, findings)) if figures.errors == 0 && figures.clean => {
            return report(a, &name, figures, findings);
        }
        _ => {}
    }
    // A repair starts from a volume whose log has been replayed. A volume that cannot be opened is checked as it is.
    if let Ok(host) = Host::open_path(&a.target, &HostOptions::default()) {
        let _ = host.close();
    }
    let (mut figures, mut findings) = look(Access::ReadWrite, mode)?;
    // Opening heals what has a good copy: that was repaired too.
    if let Ok((_, before)) = before {
        let gone = |f: &Finding| f.is_error() && !findings.iter().any(|x| (x.place, x.what) == (f.place, f.what));
        let healed: Vec<_> = before.into_iter().filter(gone).map(|f| Finding { repaired: true, ..f }).collect();
        figures.errors += healed.len() as u64;
        figures.repaired += healed.len() as u64;
        findings.extend(healed);
    }
    report(a, &name, &figures, &findings)
}

/// Refuses what is too small to hold anything.
pub fn empty(bytes: u64, name: &str) -> Done {
    match bytes / BLOCK as u64 {
        0 if bytes == 0 => {
            fail!(code::DAMAGED, "{name}: the file is empty; make a volume in it: mkfs.vexfs -s SIZE {name}")
        }
        0 | 1 => {
            fail!(code::DAMAGED, "{name}: {bytes} bytes are too few for a volume; make one: mkfs.vexfs -s SIZE {name}")
        }
        _ => Ok(()),
    }
}

/// Runs the checker over a device.
pub fn run_check(device: &dyn Device, options: Options, name: &str) -> Done<(Figures, Vec<Finding>)> {
    let env = vexfs_embedded::env(&HostOptions::default());
    empty(device.len(), name)?;
    let mut check = Check::new(env, device.len() / BLOCK as u64, options);
    let bar = show::progress(0, "checking");
    loop {
        let Some(mut io) = check.poll_io() else { break };
        let result = carry_out(device, &mut io).map_err(|_| IoError);
        check.complete(io.id, result, io.buf);
        let f = check.figures();
        bar.set_length(f.blocks);
        bar.set_position(f.nodes + f.data_blocks);
    }
    bar.finish_and_clear();
    let figures = match check.outcome() {
        Some(Ok(f)) => f,
        Some(Err(e @ (Error::Truncated | Error::NotVexfs))) => return Err(OpenError::from_core(name, e).into()),
        Some(Err(e)) => return Err(crate::place::volume_error(name, e)),
        None => return Err(Failure::new(OPERATIONAL, format!("{name}: the check did not end"))),
    };
    Ok((figures, check.findings().to_vec()))
}

fn carry_out(device: &dyn Device, io: &mut Io) -> std::io::Result<()> {
    let offset = io.block.saturating_mul(BLOCK as u64);
    match io.kind {
        IoKind::Read => device.read_at(offset, &mut io.buf),
        IoKind::Write => device.write_at(offset, &io.buf),
        IoKind::WriteDurable => device.write_durable_at(offset, &io.buf),
        IoKind::Flush => device.flush(),
        IoKind::Discard => Ok(()),
    }
}

/// Prints what was found; gives the exit code.
fn report(a: &Fsck, name: &str, f: &Figures, findings: &[Finding]) -> Done<u8> {
    let left = f.errors.saturating_sub(f.repaired);
    let code = match (left, f.repaired) {
        (0, 0) => 0,
        (0, _) => REPAIRED,
        _ => LEFT,
    };
    let paths = Paths::of(&a.target, findings.iter().filter(|x| a.verbose || x.is_error()));
    if a.json {
        let findings: Vec<Value> = findings.iter().map(|x| finding_json(x, &paths)).collect();
        let mut o = figures_json(f);
        o["target"] = name.into();
        o["findings"] = findings.into();
        show::line(o)?;
        return Ok(code);
    }
    for x in findings.iter().filter(|x| a.verbose || x.is_error()) {
        show::line(format!("{name}: {}", paths.tell(x)))?;
    }
    let state = match code {
        0 if f.clean => "clean".to_string(),
        0 => "clean (not cleanly unmounted; the next mount replays its log)".to_string(),
        REPAIRED => format!("{} repaired", show::counted(f.repaired, "error")),
        _ => {
            let done = match (a.preen, a.yes) {
                (_, true) => Mode::All,
                (true, _) => Mode::Safe,
                _ => Mode::Look,
            };
            let advice: String = advice(name, done, findings).iter().map(|x| format!("; {x}")).collect();
            format!("{} left, {} repaired{advice}", show::counted(left, "error"), show::count(f.repaired))
        }
    };
    show::line(format!(
        "{name}: {state}; {} inodes, {} records, {} of {} blocks in use",
        show::count(f.inodes),
        show::count(f.records),
        show::count(f.used),
        show::count(f.blocks)
    ))?;
    if a.verbose {
        show::line(format!(
            "  {} tree nodes, {} items, {} directories, {} collections, {} data blocks verified, {} log groups",
            f.nodes, f.items, f.directories, f.collections, f.data_blocks, f.log_groups
        ))?;
    }
    Ok(code)
}

/// What to do about the errors that are left after a check in mode `done`; only what helps.
pub fn advice(name: &str, done: Mode, findings: &[Finding]) -> Vec<String> {
    let count = |r: Repair| findings.iter().filter(|x| x.repair == r && !x.repaired).count() as u64;
    let (safe, loss) = (count(Repair::Safe), count(Repair::Loss));
    let lost = |f: fn(&Place) -> bool| findings.iter().any(|x| x.repair == Repair::No && !x.repaired && f(&x.place));
    let mut out = Vec::new();
    if done == Mode::Look && safe > 0 {
        out.push(format!("fsck.vexfs -p {name} repairs {} without losing anything", show::count(safe)));
    }
    if done != Mode::All && loss > 0 {
        out.push(format!("fsck.vexfs -y {name} repairs {}, giving up what is damaged", show::count(loss)));
    }
    if lost(|p| matches!(p, Place::Data { .. })) {
        out.push("restore or delete the files with lost contents; fsck cannot repair them".to_string());
    }
    if lost(|p| matches!(p, Place::Slot(..))) {
        out.push("insert the damaged records again or delete them; fsck cannot repair them".to_string());
    }
    if lost(|p| !matches!(p, Place::Data { .. } | Place::Slot(..))) {
        out.push("there is no repair for the rest: copy what can be read to a new volume".to_string());
    }
    out
}

/// The names of the inodes that findings are about, as far as they can be found.
pub struct Paths(HashMap<u64, Vec<Vec<u8>>>);

/// Directory entries that are looked at for names, at most.
const ENTRIES_MAX: usize = 10_000_000;
/// Names of one inode that are given at most.
const NAMES_MAX: usize = 3;

impl Paths {
    /// Looks for them on the volume.
    pub fn of<'a>(target: &Path, findings: impl Iterator<Item = &'a Finding>) -> Paths {
        let wanted: HashSet<u64> = findings.filter_map(|x| x.place.inode()).filter(|i| *i != ROOT).collect();
        let mut found = HashMap::new();
        if wanted.is_empty() {
            return Paths(found);
        }
        let options = HostOptions { read_only: true, ..HostOptions::default() };
        let Ok(host) = Host::open_path(target, &options) else { return Paths(found) };
        let files = Files::new(&host);
        // What is damaged on the way is passed over.
        let (mut stack, mut seen, mut entries) = (vec![(ROOT, Vec::new())], HashSet::new(), 0);
        while let Some((dir, path)) = stack.pop() {
            for e in files.list(dir, false).unwrap_or_default() {
                entries += 1;
                let path = [&path[..], b"/", &e.name].concat();
                if wanted.contains(&e.ino) {
                    let names: &mut Vec<_> = found.entry(e.ino).or_default();
                    if names.len() < NAMES_MAX {
                        names.push(path.clone());
                    }
                }
                if e.dtype == libc::DT_DIR && seen.insert(e.ino) {
                    stack.push((e.ino, path));
                }
            }
            if entries > ENTRIES_MAX {
                break;
            }
        }
        Paths(found)
    }

    fn get(&self, x: &Finding) -> Option<&Vec<Vec<u8>>> {
        self.0.get(&x.place.inode()?)
    }

    /// The finding in words.
    pub fn tell(&self, x: &Finding) -> String {
        let text = x.to_string();
        let Some(names) = self.get(x) else { return text };
        let names: Vec<_> = names.iter().map(|n| show::name(n)).collect();
        format!("{}: {text}", names.join(" = "))
    }
}

/// A finding as JSON.
pub fn finding_json(x: &Finding, paths: &Paths) -> Value {
    let mut o = json!({
        "place": x.place.to_string(), "what": x.what, "rule": x.rule, "is": x.is, "should_be": x.want,
        "repair": repair_name(x.repair), "repaired": x.repaired, "text": x.to_string(),
    });
    if let Some(ino) = x.place.inode() {
        o["inode"] = ino.into();
    }
    if let (Some(names), Some(o)) = (paths.get(x), o.as_object_mut()) {
        super::cmd::put_paths(o, names);
    }
    if let Place::Data { from, blocks, .. } = x.place {
        o["lost_from"] = from.saturating_mul(BLOCK as u64).into();
        o["lost_bytes"] = blocks.saturating_mul(BLOCK as u64).into();
    }
    o
}

fn repair_name(r: Repair) -> &'static str {
    match r {
        Repair::Remark => "remark",
        Repair::No => "none",
        Repair::Safe => "safe",
        Repair::Loss => "loses something",
    }
}

/// The figures of a check in JSON.
pub fn figures_json(f: &Figures) -> Value {
    json!({
        "clean": f.errors <= f.repaired, "cleanly_unmounted": f.clean, "errors": f.errors, "repaired": f.repaired,
        "inodes": f.inodes, "directories": f.directories,
        "collections": f.collections, "records": f.records, "nodes": f.nodes, "items": f.items,
        "data_blocks": f.data_blocks, "blocks_used": f.used, "blocks": f.blocks, "log_groups": f.log_groups,
    })
}

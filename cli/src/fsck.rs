// SPDX-License-Identifier: GPL-2.0-only
//! fsck.vexfs: runs the core's checker over a device and says what it found. Its exit codes are those of fsck(8).

use crate::args::Fsck;
use crate::fail::{Done, Failure};
use crate::show;
use serde_json::{json, Value};
use std::process::ExitCode;
use vexfs_core::check::{Check, Figures, Finding, Mode, Options, Repair};
use vexfs_core::format::BLOCK;
use vexfs_core::io::{Io, IoError, IoKind};
use vexfs_embedded::{Access, Device, FileDevice, Host, HostOptions};

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
    let look = |access: Access, mode: Mode| -> Done<(Figures, Vec<Finding>)> {
        let device = FileDevice::open(&a.target, access)?;
        run_check(&device, Options { mode, metadata_only: false }, &name)
    };
    if mode == Mode::Look {
        let (figures, findings) = look(Access::ReadOnly, mode)?;
        return report(a, &name, &figures, &findings);
    }
    // Whoever may not write is told so before anything is looked at.
    drop(FileDevice::open(&a.target, Access::ReadWrite)?);
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
    if let (0, Ok((was, healed))) = (figures.errors, before) {
        (figures.errors, figures.repaired) = (was.errors, was.errors);
        findings.extend(healed.into_iter().filter(Finding::is_error).map(|f| Finding { repaired: true, ..f }));
    }
    report(a, &name, &figures, &findings)
}

/// Runs the checker over a device.
pub fn run_check(device: &dyn Device, options: Options, name: &str) -> Done<(Figures, Vec<Finding>)> {
    let env = vexfs_embedded::env(&HostOptions::default());
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
    if a.json {
        let findings: Vec<Value> = findings
            .iter()
            .map(|x| {
                json!({
                    "place": x.place.to_string(), "what": x.what, "rule": x.rule, "is": x.is, "should_be": x.want,
                    "repair": repair_name(x.repair), "repaired": x.repaired,
                })
            })
            .collect();
        let mut o = figures_json(f);
        o["target"] = name.into();
        o["findings"] = findings.into();
        show::line(o)?;
        return Ok(code);
    }
    for x in findings.iter().filter(|x| a.verbose || x.is_error()) {
        show::line(format!("{name}: {x}"))?;
    }
    let state = match code {
        0 if f.clean => "clean".to_string(),
        0 => "clean (not cleanly unmounted; the next mount replays its log)".to_string(),
        REPAIRED => format!("{} errors repaired", show::count(f.repaired)),
        _ => {
            let most = if a.yes {
                ""
            } else if a.preen {
                "; fsck.vexfs -y repairs more"
            } else {
                "; repair with fsck.vexfs -p (loses nothing) or -y"
            };
            format!("{} errors left, {} repaired{most}", show::count(left), show::count(f.repaired))
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
        "clean": f.clean, "errors": f.errors, "repaired": f.repaired, "inodes": f.inodes, "directories": f.directories,
        "collections": f.collections, "records": f.records, "nodes": f.nodes, "items": f.items,
        "data_blocks": f.data_blocks, "blocks_used": f.used, "blocks": f.blocks, "log_groups": f.log_groups,
    })
}

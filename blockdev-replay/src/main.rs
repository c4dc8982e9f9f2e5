// SPDX-License-Identifier: GPL-2.0-only
//! The command line of blockdev-replay.

use blockdev_replay::cut::Cut;
use blockdev_replay::log::{Entry, Log};
use blockdev_replay::verify::{verify, Disk, Plan};
use clap::{Args, Parser, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use vexfs_embedded::testing::Random;

/// Replays a log of a disk's writes, as dm-log-writes and QEMU's blklogwrites write it, to what a power cut could
/// have left, and checks VexFS on it.
///
/// A power cut is named by `--at N --keep WHICH`: the log ends after N entries; of the writes since the last flush
/// arrived WHICH: all, none, or a list of entry numbers, where 7:03 means that of entry 7 only the sectors of 512 bytes
/// arrived whose bits are set in 03 (a byte for eight sectors, the first in the lowest bit).
#[derive(Debug, Parser)]
#[command(
    name = "blockdev-replay",
    version,
    after_help = "Exit codes: 0 all is well; 1 a state did not pass; 2 wrong usage; 3 the log cannot be read."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the entries of a log
    List(List),
    /// Describe a log
    Info(Info),
    /// Rebuild the disk as a power cut left it
    Build(Build),
    /// Cut the power, recover and check: at each flush, at all entries, at random ones, or once
    Check(CheckArgs),
}

#[derive(Debug, Args)]
struct List {
    /// The log
    log: PathBuf,
    /// First entry to list
    #[arg(long, value_name = "N", default_value = "0")]
    from: usize,
    /// One more than the last entry to list
    #[arg(long, value_name = "N")]
    to: Option<usize>,
    /// A JSON object for each entry
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Info {
    /// The log
    log: PathBuf,
    /// Print as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Source {
    /// The log
    log: PathBuf,
    /// What the disk held before the log began; without it: zeros
    #[arg(long, value_name = "IMAGE")]
    base: Option<PathBuf>,
    /// Size of the disk in bytes; without it: that of the volume on it
    #[arg(long, value_name = "BYTES")]
    size: Option<u64>,
    /// First entry that a power cut may spare: the entries before it have arrived. Without it: where a volume is on
    /// the disk, as making one is not atomic
    #[arg(long, value_name = "N")]
    from: Option<usize>,
    /// As on a disk that ignores flushes: everything since the start may be lost
    #[arg(long)]
    ignore_flushes: bool,
}

#[derive(Debug, Args)]
struct Build {
    #[command(flatten)]
    source: Source,
    /// Entries of the log before the power cut; without it: all
    #[arg(long, value_name = "N")]
    at: Option<usize>,
    /// Volatile writes that arrived: all, none, or a list
    #[arg(long, value_name = "WHICH", default_value = "all", conflicts_with = "seed")]
    keep: String,
    /// Draw what arrived
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Image file to write
    #[arg(short, long, value_name = "IMAGE")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct CheckArgs {
    #[command(flatten)]
    source: Source,
    /// Only this power cut
    #[arg(long, value_name = "N", conflicts_with_all = ["every", "random"])]
    at: Option<usize>,
    /// With --at: volatile writes that arrived
    #[arg(long, value_name = "WHICH", requires = "at")]
    keep: Option<String>,
    /// Cut after each Nth entry; without --every, --random and --at: after each flush, and before it
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    every: Option<u32>,
    /// Cut after so many entries drawn at random
    #[arg(long, value_name = "N", conflicts_with = "every")]
    random: Option<u64>,
    /// Random parts of the volatile writes that arrive, at each place
    #[arg(long, value_name = "N", default_value = "1")]
    subsets: u64,
    /// Also all subsets of up to so many volatile writes, and tears of them at each sector
    #[arg(long, value_name = "N", default_value = "0")]
    exhaustive: u8,
    /// Power cuts during each recovery
    #[arg(long, value_name = "N", default_value = "0")]
    recovery: u64,
    /// Seed of all that is random
    #[arg(long, value_name = "N", default_value = "1")]
    seed: u64,
    /// Threads; without it: one for each CPU
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
}

/// What went wrong, and the exit code.
struct Fail(u8, String);

impl Fail {
    fn log(path: &std::path::Path) -> impl Fn(std::io::Error) -> Fail + '_ {
        move |e| Fail(3, format!("{}: {e}", path.display()))
    }
}

fn usage(text: impl Into<String>) -> Fail {
    Fail(2, text.into())
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::List(a) => list(&a),
        Command::Info(a) => info(&a),
        Command::Build(a) => build(&a),
        Command::Check(a) => check(&a),
    };
    match done {
        Ok(code) => code,
        Err(Fail(code, text)) => {
            eprintln!("blockdev-replay: {text}");
            ExitCode::from(code)
        }
    }
}

/// Prints a line; a reader that has seen enough is no failure.
fn line(text: impl std::fmt::Display) -> Result<(), Fail> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.map_err(|e| Fail(3, format!("standard output: {e}"))),
    }
}

fn entry_json(n: usize, e: &Entry) -> serde_json::Value {
    let mut o = json!({"entry": n, "what": e.kind(), "offset": e.offset, "bytes": e.len, "log_end": e.end});
    if !e.mark.is_empty() {
        o["mark"] = String::from_utf8_lossy(&e.mark).into();
    }
    o
}

fn list(a: &List) -> Result<ExitCode, Fail> {
    let log = Log::open(&a.log).map_err(Fail::log(&a.log))?;
    for (n, e) in log.entries.iter().enumerate().take(a.to.unwrap_or(usize::MAX)).skip(a.from) {
        if a.json {
            line(entry_json(n, e))?;
        } else if e.mark.is_empty() {
            line(format_args!("{n:>8}  {:<20} {:>14} {:>10}", e.kind(), e.offset, e.len))?;
        } else {
            line(format_args!("{n:>8}  {:<20} {}", e.kind(), String::from_utf8_lossy(&e.mark)))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn info(a: &Info) -> Result<ExitCode, Fail> {
    let log = Log::open(&a.log).map_err(Fail::log(&a.log))?;
    let count = |f: fn(&Entry) -> bool| log.entries.iter().filter(|e| f(e)).count();
    let written: u64 = log.entries.iter().filter(|e| e.changes() && !e.is_discard()).map(|e| e.len).sum();
    let o = json!({
        "entries": log.entries.len(), "superblock_says": log.said, "sector_size": log.sector_size, "flushes": count(Entry::is_flush),
        "writes": count(|e| e.changes() && !e.is_discard()), "fua": count(Entry::is_fua), "discards": count(Entry::is_discard),
        "marks": log.entries.iter().filter(|e| !e.mark.is_empty()).count(), "bytes_written": written, "disk_end": log.extent(), "tail": log.tail,
    });
    if a.json {
        line(o)?;
    } else if let Some(fields) = o.as_object() {
        for (k, v) in fields.iter().filter(|(_, v)| !v.is_null()) {
            line(format_args!(
                "{:<18} {}",
                k.replace('_', " "),
                v.as_str().map_or_else(|| v.to_string(), str::to_string)
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Opens log and base, and finds where the volume begins.
fn disk(a: &Source, need_volume: bool) -> Result<Disk, Fail> {
    let log = Log::open(&a.log).map_err(Fail::log(&a.log))?;
    if let Some(tail) = &log.tail {
        eprintln!("blockdev-replay: {}: {tail}", a.log.display());
    }
    let base = match &a.base {
        Some(p) => Some(Arc::new(File::open(p).map_err(Fail::log(p))?)),
        None => None,
    };
    let mut disk = Disk::new(Arc::new(log), base, a.size).map_err(Fail::log(&a.log))?;
    disk.start = match a.from {
        Some(n) if n > disk.log.entries.len() => {
            return Err(usage(format!("--from {n}: the log has {} entries", disk.log.entries.len())))
        }
        Some(n) => n,
        None => match disk.volume_begins() {
            Some(n) => n,
            None if need_volume => {
                return Err(Fail(
                    1,
                    format!("{}: at no place of the log is a VexFS volume on the disk", a.log.display()),
                ))
            }
            None => 0,
        },
    };
    disk.flushes = !a.ignore_flushes;
    Ok(disk)
}

fn build(a: &Build) -> Result<ExitCode, Fail> {
    let disk = disk(&a.source, false)?;
    let entries = disk.log.entries.len();
    let at = a.at.unwrap_or(entries);
    if at > entries {
        return Err(usage(format!("--at {at}: the log has {entries} entries")));
    }
    let durable = disk.durable(at);
    let volatile = durable.volatile(&disk.log);
    let cut = match a.seed {
        Some(seed) => Cut::random(&disk.log, &volatile, at, seed),
        None => Cut::parse(&disk.log, &volatile, at, &a.keep).map_err(usage)?,
    };
    disk.trial(&durable, &cut).write_to(&a.out).map_err(Fail::log(&a.out))?;
    let (whole, torn, lost) = cut.counts();
    line(format_args!(
        "{}: {} bytes, {cut}: of {} volatile writes {whole} arrived, {torn} were torn, {lost} lost",
        a.out.display(),
        disk.len,
        volatile.len()
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// Places to cut at.
fn places(a: &CheckArgs, disk: &Disk) -> Vec<usize> {
    let (first, last) = (disk.start, disk.log.entries.len());
    if let Some(n) = a.every {
        return (first..=last).step_by(n as usize).collect();
    }
    if let Some(n) = a.random {
        // Different places, as many as there are.
        let (mut random, mut drawn) = (Random::new(a.seed), BTreeSet::new());
        while (drawn.len() as u64) < n && drawn.len() <= last - first {
            drawn.insert(first + random.below((last - first + 1) as u64) as usize);
        }
        return drawn.into_iter().collect();
    }
    let flushes = (first..last).filter(|i| disk.log.entries[*i].is_flush()).flat_map(|i| [i, i + 1]);
    flushes.chain([first, last]).collect::<BTreeSet<usize>>().into_iter().collect()
}

fn check(a: &CheckArgs) -> Result<ExitCode, Fail> {
    let disk = disk(&a.source, true)?;
    let entries = disk.log.entries.len();
    if let Some(at) = a.at {
        if at < disk.start || at > entries {
            return Err(usage(format!("--at {at}: the volume is there from entry {} to {entries}", disk.start)));
        }
    }
    if let (Some(at), Some(keep)) = (a.at, &a.keep) {
        let durable = disk.durable(at);
        let cut = Cut::parse(&disk.log, &durable.volatile(&disk.log), at, keep).map_err(usage)?;
        return match verify(disk.trial(&durable, &cut), a.recovery, a.seed ^ at as u64) {
            Ok(f) => {
                line(format_args!(
                    "{cut}: recovered and clean; {} inodes, {} records, {} blocks in use",
                    f.inodes, f.records, f.used
                ))?;
                Ok(ExitCode::SUCCESS)
            }
            Err(e) => {
                line(format_args!("{cut}: {e}"))?;
                Ok(ExitCode::from(1))
            }
        };
    }
    let plan = Plan {
        places: a.at.map_or_else(|| places(a, &disk), |at| vec![at]),
        random: a.subsets,
        exhaustive: usize::from(a.exhaustive),
        recovery: a.recovery,
        seed: a.seed,
        jobs: a.jobs.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get())),
    };
    let bar = ProgressBar::new(plan.places.len() as u64);
    if !std::io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} places, {eta}") {
        bar.set_style(style);
    }
    let outcome = disk.run(&plan, |_| bar.inc(1));
    bar.finish_and_clear();
    let (whole, torn, lost) = outcome.writes;
    if a.json {
        let bad: Vec<_> = outcome.bad.iter().map(|b| json!({"cut": b.cut, "why": b.why})).collect();
        line(
            json!({"entries": entries, "from": disk.start, "places": plan.places.len(), "states": outcome.states, "arrived": whole, "torn": torn, "lost": lost, "bad": bad}),
        )?;
    } else {
        for b in outcome.bad.iter().take(20) {
            line(format_args!(
                "blockdev-replay check {} --from {} {}: {}",
                a.source.log.display(),
                disk.start,
                b.cut,
                b.why
            ))?;
        }
        line(format_args!(
            "{} states after power cuts at {} places of {entries} entries: {} did not pass; volatile writes: {whole} arrived, {torn} torn, {lost} lost",
            outcome.states,
            plan.places.len(),
            outcome.bad.len()
        ))?;
    }
    Ok(ExitCode::from(u8::from(!outcome.bad.is_empty())))
}

// SPDX-License-Identifier: GPL-2.0-only
//! The simulator's command line.

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sim::canary::{self, Canary};
use sim::runner::{self, Overrides, Plan};
use sim::swarm::FAULTS;
use std::io::IsTerminal;
use std::process::ExitCode;

/// Runs VexFS in a deterministic world with faults and crashes, and compares it with a model.
///
/// One seed decides everything. Exit codes: 0 no violation, 1 a violation (with the command that
/// replays it), 2 wrong usage.
#[derive(Parser)]
#[command(name = "sim", version)]
struct Args {
    /// Run this seed, twice, and compare the hashes.
    #[arg(long, conflicts_with_all = ["seeds", "seed_list", "canaries"])]
    seed: Option<u64>,
    /// Run the seeds from A up to but not including B.
    #[arg(long, value_name = "A..B", value_parser = parse_span)]
    seeds: Option<(u64, u64)>,
    /// Run the seeds that a file lists, one a line with its options; `#` begins a comment.
    #[arg(long, value_name = "FILE")]
    seed_list: Option<std::path::PathBuf>,
    /// Run worlds that are broken on purpose; each has to be caught.
    #[arg(long)]
    canaries: bool,
    /// Break the world in one way (see --canaries).
    #[arg(long, value_name = "NAME")]
    canary: Option<String>,
    /// Operations of a run (default: the seed decides, 200 or more).
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    ops: u64,
    /// Most operations in flight (default: the seed decides).
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    width: usize,
    /// Faults to switch off, separated by commas.
    #[arg(long, value_delimiter = ',', value_name = "FAULT")]
    off: Vec<String>,
    /// Operations to leave out, such as 3,10-20.
    #[arg(long, value_name = "LIST")]
    skip: Option<String>,
    /// Make a failing run as small as possible.
    #[arg(long)]
    shrink: bool,
    /// Threads (default: one for each processor).
    #[arg(long, default_value_t = 0, hide_default_value = true)]
    jobs: usize,
    /// Run every K-th seed twice and compare the hashes; 0: none.
    #[arg(long, value_name = "K", default_value_t = 1)]
    twice: u64,
    /// Stop after this many failing seeds.
    #[arg(long, default_value_t = 10)]
    failures: usize,
    /// From this many seeds on, an operation that never met a fault is an error.
    #[arg(long, default_value_t = 5000)]
    coverage_from: u64,
    /// Tell every step of the run on stderr.
    #[arg(short, long)]
    verbose: bool,
}

fn parse_span(s: &str) -> Result<(u64, u64), String> {
    let (a, b) = s.split_once("..").ok_or("write it as A..B, such as 0..1000")?;
    let n = |t: &str| t.replace('_', "").parse::<u64>().map_err(|_| format!("{t:?} is not a number"));
    let (a, b) = (n(a)?, n(b)?);
    if a < b {
        Ok((a, b))
    } else {
        Err("the range is empty".into())
    }
}

fn overrides(args: &Args) -> Result<Overrides, String> {
    let mut off = Vec::new();
    for name in args.off.iter().filter(|n| !n.is_empty()) {
        let i = FAULTS.iter().position(|f| f == name);
        off.push(i.ok_or_else(|| format!("no fault is called {name:?}; there are: {}", FAULTS.join(", ")))?);
    }
    let skip = runner::parse_ranges(args.skip.as_deref().unwrap_or(""))?;
    Ok(Overrides { ops: args.ops, width: args.width, off, skip })
}

fn one(seed: u64, o: &Overrides, canary: Canary, args: &Args) -> bool {
    let cfg = o.config(seed);
    let first = runner::run(&cfg, canary, args.verbose);
    let Some(message) = first.violation else {
        let second = runner::run(&cfg, canary, false);
        if second.hash != first.hash {
            println!("seed {seed}: two runs differ: {} and {}", first.hash, second.hash);
            return false;
        }
        let ops: u64 = first.tally.ops.values().sum();
        println!(
            "seed {seed}: no violation; {ops} operations, {} crashes, {} crash states, {} disk requests; hash {} twice",
            first.tally.crashes, first.tally.states, first.tally.io, first.hash
        );
        return true;
    };
    let (best, message) = if args.shrink {
        runner::shrink(seed, o, canary, 2000, &|s| eprintln!("shrinking: {s}"))
    } else {
        (o.clone(), message)
    };
    println!("seed {seed}: VIOLATION\n  {message}\n  replay: {}{}", best.command(seed), canary_option(canary));
    false
}

fn canary_option(c: Canary) -> String {
    canary::ALL.iter().find(|(x, _)| *x == c).map_or(String::new(), |(_, n)| format!(" --canary {n}"))
}

fn bar(n: u64) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} seeds, {per_sec}, {eta} left, {msg}");
    ProgressBar::new(n).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn main() -> ExitCode {
    let args = Args::parse();
    match work(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(e) => {
            eprintln!("sim: {e}");
            ExitCode::from(2)
        }
    }
}

fn work(args: &Args) -> Result<bool, String> {
    runner::catch_panics();
    let o = overrides(args)?;
    let canary = match &args.canary {
        None => Canary::None,
        Some(n) => canary::ALL.iter().find(|(_, x)| x == n).map(|(c, _)| *c).ok_or_else(|| {
            format!("no canary is called {n:?}; there are: {}", canary::ALL.map(|(_, n)| n).join(", "))
        })?,
    };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let jobs = if args.jobs == 0 { processors } else { args.jobs };
    if args.canaries {
        let (_, max) = args.seeds.unwrap_or((0, 2000));
        return match runner::canaries(jobs, max, &|s| println!("{s}")) {
            Ok(()) => Ok(true),
            Err(e) => {
                println!("{e}");
                Ok(false)
            }
        };
    }
    if let Some(path) = &args.seed_list {
        let text = std::fs::read_to_string(path).map_err(|e| format!("{}: {e}", path.display()))?;
        let (mut count, mut failed) = (0, 0);
        for line in text.lines().map(|l| l.split('#').next().unwrap_or("").trim()).filter(|l| !l.is_empty()) {
            let words = std::iter::once("sim").chain(std::iter::once("--seed")).chain(line.split_whitespace());
            let a = Args::try_parse_from(words).map_err(|e| format!("{}: {line:?}: {e}", path.display()))?;
            let seed = a.seed.ok_or_else(|| format!("{}: {line:?}: no seed", path.display()))?;
            count += 1;
            failed += u32::from(!one(seed, &overrides(&a)?, Canary::None, &a));
        }
        match failed {
            0 => println!("sim: {count} seeds of a list; no violation"),
            n => println!("sim: {n} of {count} seeds failed"),
        }
        return Ok(failed == 0);
    }
    let Some((from, to)) = args.seeds else {
        return Ok(one(args.seed.unwrap_or(0), &o, canary, args));
    };
    let seeds: Vec<u64> = (from..to).collect();
    let bar = bar(seeds.len() as u64);
    let plan = Plan {
        seeds: &seeds,
        jobs,
        twice_every: args.twice,
        overrides: &o,
        canary,
        failures_max: args.failures,
        progress: &|failures| {
            bar.inc(1);
            bar.set_message(format!("{failures} failed"));
        },
    };
    let s = runner::many(&plan);
    bar.finish_and_clear();
    print!("{}", runner::report(&s));
    for f in &s.failures {
        println!(
            "\nseed {}: VIOLATION\n  {}\n  replay: {}{}",
            f.seed,
            f.message,
            o.command(f.seed),
            canary_option(canary)
        );
    }
    if args.shrink {
        if let Some(f) = s.failures.first() {
            let (best, message) = runner::shrink(f.seed, &o, canary, 2000, &|s| eprintln!("shrinking: {s}"));
            println!(
                "\nseed {} made small:\n  {message}\n  replay: {}{}",
                f.seed,
                best.command(f.seed),
                canary_option(canary)
            );
        }
    }
    let gaps = runner::gaps(&s.tally);
    if s.seeds >= args.coverage_from && !gaps.is_empty() && args.off.is_empty() {
        let names: Vec<String> =
            gaps.iter().map(|(k, f)| format!("{} x {}", sim::act::KINDS[*k], FAULTS[*f])).collect();
        println!("\nnever tested: {}", names.join(", "));
        return Ok(false);
    }
    if s.seeds >= args.coverage_from && s.tally.paging.1 == 0 {
        println!("\nnever tested: vectors that do not fit into memory");
        return Ok(false);
    }
    if s.failures.is_empty() {
        println!("\nsim: {} seeds, {} crash states; no violation", s.seeds, s.tally.states);
    } else {
        println!("\n{} of {} seeds failed", s.failures.len(), s.seeds);
    }
    Ok(s.failures.is_empty())
}

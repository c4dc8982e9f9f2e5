// SPDX-License-Identifier: GPL-2.0-only
//! What `vexfs-bench` is made of. Every measurement has warm-up runs that count for nothing and measured runs whose
//! samples are kept whole in a file; tables are made from such files and from nothing else.

pub mod files;
#[cfg(feature = "kernels")]
pub mod kernels;
pub mod machine;
pub mod mixed;
pub mod peer;
pub mod raw;
pub mod stats;
pub mod tables;
pub mod vectors;

use raw::Row;
use serde_json::{Map, Value};
use std::ffi::OsStr;
use vexfs_cli::place::Place;

/// A count from the command line.
fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("at least 1".into()),
        Ok(n) => Ok(n),
        Err(e) => Err(format!("{e}")),
    }
}

/// Samples of a measurement under way.
#[derive(Debug, Default)]
pub struct Measured {
    warmups: Vec<f64>,
    runs: Vec<f64>,
    latencies: Vec<f64>,
}

impl Measured {
    /// Adds a run.
    pub fn add(&mut self, warmup: bool, rate: f64, mut latencies: Vec<f64>) {
        if warmup {
            self.warmups.push(rate);
        } else {
            self.runs.push(rate);
            self.latencies.append(&mut latencies);
        }
    }
}

/// What all measurements share.
#[derive(clap::Args, Debug, Clone)]
pub struct Common {
    /// Measured runs
    #[arg(long, default_value_t = 20, value_name = "N", value_parser = at_least_one)]
    pub runs: usize,
    /// Runs before them that count for nothing
    #[arg(long, default_value_t = 5, value_name = "N")]
    pub warmups: usize,
    /// Requests in a run: inserts of a batch, queries, durable small files
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = at_least_one)]
    pub requests: usize,
    /// File for the raw samples; rows are added to it
    #[arg(long, value_name = "FILE.json")]
    pub out: Option<std::path::PathBuf>,
    /// Where this runs, if the guess is wrong: 'bare metal', 'KVM', 'emulated VM', 'user-mode Linux'
    #[arg(long, value_name = "TEXT")]
    pub machine: Option<String>,
    /// Print the rows as JSON
    #[arg(long)]
    pub json: bool,
}

/// How searches are measured.
#[derive(clap::Args, Debug, Clone)]
pub struct SearchArgs {
    /// The queries: .npy file; without it, random ones
    #[arg(long, value_name = "FILE.npy")]
    pub queries: Option<std::path::PathBuf>,
    /// Results of a query
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
    /// HNSW: candidates while searching; one row for each
    #[arg(long, value_delimiter = ',', default_value = "10,16,24,32,48,64,96,128,256", value_name = "N,…")]
    pub ef: Vec<u32>,
    /// Measure only the first ef whose recall is at least this
    #[arg(long, value_name = "RECALL")]
    pub target: Option<f64>,
}

impl Common {
    /// A row with everything that is known about where it comes from.
    pub fn row(&self, what: &str, path: &OsStr, params: Map<String, Value>, unit: &str, m: Measured) -> Row {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Row {
            what: what.into(),
            driver: machine::driver(&Place::of(path)),
            machine: self.machine.clone().unwrap_or_else(machine::kind),
            cpu: machine::cpu(),
            commit: machine::commit(),
            command: command_line(std::env::args()),
            time: now.map_or(0, |d| d.as_secs()),
            params,
            unit: unit.into(),
            warmups: m.warmups,
            runs: m.runs,
            latencies_us: m.latencies,
            recall: None,
            evaluations: None,
        }
    }
}

/// A command line as it would be typed beside the files: of paths only the last part, as the others are one machine's business.
fn command_line(words: impl Iterator<Item = String>) -> String {
    let short = |w: String| w.rsplit('/').next().map_or_else(String::new, str::to_owned);
    words.map(short).collect::<Vec<_>>().join(" ")
}

// SPDX-License-Identifier: GPL-2.0-only
//! `vexfs-bench`: see `vexfs-bench --help`.

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use vexfs_bench::mixed::{self, MixedArgs};
use vexfs_bench::peer::{self, PeerArgs};
use vexfs_bench::raw::{Raw, Row};
use vexfs_bench::tables::table;
use vexfs_bench::vectors::Shape;
use vexfs_bench::{files, vectors, Common, SearchArgs};
use vexfs_cli::fail::{code, Done, Failure};

/// Measures a VexFS: inserts, searches and file operations
///
/// PATH is a directory on a mounted filesystem, or TARGET:/path for a volume that is opened in-process. Files can be
/// measured on any filesystem, vectors on a VexFS.
#[derive(Parser)]
#[command(
    name = "vexfs-bench",
    version,
    after_help = "\
Samples are kept whole (--out), no outlier is left out, and `vexfs-bench table` makes Markdown of them:
  vexfs-bench insert vol.img:/bench --data base.npy --out raw.json
  vexfs-bench files /mnt/ext4/bench --out raw.json
  vexfs-bench table raw.json"
)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Durable inserts per second, by batch size
    Insert {
        /// Directory for the measurement; must not be a collection
        path: OsString,
        #[command(flatten)]
        shape: Shape,
        /// Records in a request; two rows for each
        #[arg(long, value_delimiter = ',', default_value = "1,16,256", value_name = "N,…")]
        batch: Vec<usize>,
        #[command(flatten)]
        common: Common,
    },
    /// Searches per second and recall, one query a request
    Search {
        /// Directory for the measurement; must not be a collection
        path: OsString,
        #[command(flatten)]
        shape: Shape,
        #[command(flatten)]
        search: SearchArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Searches per second and their latency while inserts, deletes or a reindex go on
    Mixed {
        /// Directory for the measurement; must not be a collection
        path: OsString,
        #[command(flatten)]
        shape: Shape,
        #[command(flatten)]
        mixed: MixedArgs,
        #[command(flatten)]
        common: Common,
    },
    /// Creates, unlinks, durable small files, sequential writes and reads
    Files {
        /// Directory for the measurement, on any filesystem
        path: OsString,
        /// Files that a run creates and unlinks
        #[arg(long, default_value_t = 1000, value_name = "N")]
        count: usize,
        /// Size of the file that is written and read in order
        #[arg(long, default_value_t = 64, value_name = "MIB")]
        mib: usize,
        #[command(flatten)]
        common: Common,
    },
    /// Answers bench/peers: requests about one collection on standard input, a line of JSON each
    Peer {
        /// Directory for the measurement; what is a collection there is dropped
        path: OsString,
        #[command(flatten)]
        peer: PeerArgs,
    },
    /// Distance kernels beside those of other crates and beside reading memory, as JSON
    #[cfg(feature = "kernels")]
    Kernels {
        /// Samples of each
        #[arg(long, default_value_t = 5, value_name = "N")]
        rounds: usize,
    },
    /// Makes Markdown tables of raw samples
    Table {
        /// Files that --out made
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// A row for each measurement, with variation and percentiles
        #[arg(long)]
        details: bool,
    },
}

fn run() -> Done {
    let (rows, common): (Vec<Row>, Common) = match Args::parse().command {
        Command::Insert { path, shape, batch, common } => (vectors::insert(&path, &shape, &batch, &common)?, common),
        Command::Search { path, shape, search, common } => (vectors::search(&path, &shape, &search, &common)?, common),
        Command::Mixed { path, shape, mixed, common } => (mixed::mixed(&path, &shape, &mixed, &common)?, common),
        Command::Files { path, count, mib, common } => (files::files(&path, count, mib, &common)?, common),
        Command::Peer { path, peer } => return peer::serve(&path, &peer),
        #[cfg(feature = "kernels")]
        Command::Kernels { rounds } => {
            let text = vexfs_bench::kernels::measure(rounds).to_string() + "\n";
            return vexfs_cli::show::bytes(text.as_bytes());
        }
        Command::Table { files, details } => {
            let mut rows = Vec::new();
            for f in files {
                rows.extend(Raw::read(&f)?.rows);
            }
            return vexfs_cli::show::bytes(table(&rows, details).as_bytes());
        }
    };
    if let Some(out) = &common.out {
        Raw::append(out, &rows)?;
    }
    let text = match common.json {
        true => serde_json::to_string(&rows).map_err(|e| Failure::new(code::FAILED, e.to_string()))? + "\n",
        false => table(&rows, true),
    };
    vexfs_cli::show::bytes(text.as_bytes())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("vexfs-bench: {e}");
            ExitCode::from(e.code)
        }
    }
}

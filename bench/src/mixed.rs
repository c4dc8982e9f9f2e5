// SPDX-License-Identifier: GPL-2.0-only
//! Searches while something else goes on in the same collection: nothing, inserts, inserts and deletes, a reindex. One
//! thread searches, another one does the rest as fast as it goes.

use crate::raw::Row;
use crate::vectors::{fresh, load, random, settle, Shape, Vectors};
use crate::{Common, Measured};
use serde_json::json;
use std::ffi::OsStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use vexfs_cli::fail;
use vexfs_cli::fail::{code, Done, Failure};
use vexfs_cli::session::Session;
use vexfs_client::{IndexParams, Insert, Search};

/// What a mixed load is.
#[derive(clap::Args, Debug, Clone)]
pub struct MixedArgs {
    /// The queries: .npy file; without it, random ones
    #[arg(long, value_name = "FILE.npy")]
    pub queries: Option<std::path::PathBuf>,
    /// Results of a query
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
    /// HNSW: candidates while searching; 0: the default
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub ef: u32,
    /// Seconds of a run
    #[arg(long, default_value_t = 1.0, value_name = "S")]
    pub seconds: f64,
    /// Records in a request that changes some
    #[arg(long, default_value_t = 100, value_name = "N", value_parser = crate::at_least_one)]
    pub batch: usize,
}

/// What goes on beside the searches.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Nothing,
    Inserts,
    InsertsAndDeletes,
    Reindex,
}

impl Load {
    const ALL: [Load; 4] = [Load::Nothing, Load::Inserts, Load::InsertsAndDeletes, Load::Reindex];

    fn name(self) -> &'static str {
        match self {
            Load::Nothing => "nothing else",
            Load::Inserts => "durable inserts",
            Load::InsertsAndDeletes => "durable inserts and deletes",
            Load::Reindex => "a reindex",
        }
    }
}

/// Records whose inserts were deleted again lie this many batches behind.
const LAG: usize = 4;

/// Changes the collection until `stop`; gives how many records it changed and in how much time. `stock`: what to insert,
/// with ids from `first` on, again and again.
fn change(
    s: &mut Session,
    load: Load,
    stock: &Vectors,
    first: u64,
    batch: usize,
    stop: &AtomicBool,
) -> Done<(u64, Duration)> {
    let start = Instant::now();
    let mut changed = 0u64;
    let parts: Vec<&[f32]> = stock.words.chunks(batch * stock.dim as usize).collect();
    let ids = |part: usize| {
        let from = first + (part * batch) as u64;
        (from..from + (parts[part].len() / stock.dim as usize) as u64).collect::<Vec<u64>>()
    };
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        match load {
            Load::Nothing => std::thread::sleep(Duration::from_millis(1)),
            Load::Inserts | Load::InsertsAndDeletes => {
                let part = i % parts.len();
                let ids_of = ids(part);
                let ids_of = Some(ids_of.as_slice());
                let i_req =
                    Insert { dim: stock.dim, vectors: parts[part], ids: ids_of, durable: true, ..Insert::default() };
                changed += s.ask(|c| c.insert(&i_req))?.count;
                if load == Load::InsertsAndDeletes && i >= LAG {
                    changed += s.ask(|c| c.delete(&ids((i - LAG) % parts.len()), true))?.done;
                }
            }
            Load::Reindex => {
                s.ask(|c| c.reindex(None, &IndexParams::default()))?;
                loop {
                    let info = s.ask(|c| c.info())?;
                    if info.pending == 0 && !info.catching_up {
                        changed += info.records;
                        break;
                    }
                    if stop.load(Ordering::Relaxed) {
                        changed += info.records.saturating_sub(info.pending);
                        break;
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }
    Ok((changed, start.elapsed()))
}

/// Searches per second, one query a request, and changes per second, for each load.
pub fn mixed(path: &OsStr, shape: &Shape, a: &MixedArgs, common: &Common) -> Done<Vec<Row>> {
    let all = shape.vectors(20_000)?;
    let queries = match &a.queries {
        Some(path) => load(path)?.cut(Some(common.requests)),
        None => random(2, all.dim, common.requests),
    };
    if queries.dim != all.dim || queries.len() == 0 {
        fail!(code::USAGE, "the queries have dimension {}, the data has {}", queries.dim, all.dim);
    }
    // A tenth comes and goes.
    let stay = all.len() - (all.len() / 10).max(1).min(all.len());
    let (base, stock) = all.words.split_at(stay * all.dim as usize);
    let stock = Vectors { dim: all.dim, words: stock.to_vec() };
    let seconds = Duration::try_from_secs_f64(a.seconds)
        .ok()
        .filter(|s| !s.is_zero())
        .ok_or_else(|| Failure::new(code::USAGE, format!("{} seconds are no time", a.seconds)))?;
    let mut s = fresh(path, &shape.schema(all.dim))?;
    for part in base.chunks(1000 * all.dim as usize) {
        s.ask(|c| c.insert(&Insert { dim: all.dim, vectors: part, ..Insert::default() }))?;
    }
    s.ask(|c| c.sync())?;
    let mut rows = Vec::new();
    for load in Load::ALL {
        let (mut searches, mut changes) = (Measured::default(), Measured::default());
        for run in 0..common.warmups + common.runs {
            settle(&mut s)?;
            let warm = run < common.warmups;
            let stop = AtomicBool::new(false);
            let mut other = s.another()?;
            let (latencies, time, changed) = std::thread::scope(|scope| {
                let changing = scope.spawn(|| change(&mut other, load, &stock, stay as u64, a.batch, &stop));
                let mut latencies = Vec::new();
                let start = Instant::now();
                let mut searched = Ok(());
                while searched.is_ok() && start.elapsed() < seconds {
                    let q = queries.row(latencies.len() % queries.len());
                    let asked = Search { dim: all.dim, queries: q, k: a.k, ef: a.ef, ..Search::default() };
                    let t = Instant::now();
                    searched = s.ask(|c| c.search(&asked)).map(drop);
                    latencies.push(t.elapsed().as_secs_f64() * 1e6);
                }
                let time = start.elapsed();
                stop.store(true, Ordering::Relaxed);
                let changed = changing.join().map_err(|_| Failure::new(code::FAILED, "a thread panicked"))?;
                searched?;
                Ok::<_, Failure>((latencies, time, changed?))
            })?;
            searches.add(warm, latencies.len() as f64 / time.as_secs_f64(), latencies);
            changes.add(warm, changed.0 as f64 / changed.1.as_secs_f64(), Vec::new());
        }
        let mut params = shape.params(&all);
        params.insert("k".into(), json!(a.k));
        if a.ef > 0 {
            params.insert("ef".into(), json!(a.ef));
        }
        rows.push(common.row(&format!("search during {}", load.name()), path, params.clone(), "/s", searches));
        if load != Load::Nothing {
            params.insert("batch".into(), json!(a.batch));
            let what = match load {
                Load::Reindex => "records indexed anew during searches".into(),
                _ => format!("records of {} during searches", load.name()),
            };
            rows.push(common.row(&what, path, params, "/s", changes));
        }
    }
    settle(&mut s)?;
    s.ask(|c| c.drop_collection())?;
    s.close()?;
    Ok(rows)
}

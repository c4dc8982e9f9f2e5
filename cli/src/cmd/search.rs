// SPDX-License-Identifier: GPL-2.0-only
//! search.

use crate::args::Search;
use crate::data::IvecsWriter;
use crate::fail;
use crate::fail::{code, Done};
use crate::session::{Intent, Session};
use crate::show;
use serde_json::{Map, Value};
use std::time::Instant;
use vexfs_client::wire::K_MAX;
use vexfs_client::{Hit, IndexKind, QueryResult};

/// Results of a query, if nothing is said.
const K_DEFAULT: u32 = 10;
/// Queries of one request: results come while others are searched for, and the progress bar moves.
const QUERIES: usize = 100;
/// Results that may be held at a time.
const RESULTS: usize = 1 << 20;

/// `vexfs search`.
pub fn search(a: &Search) -> Done {
    // Without -k a range search gives all that is in the range, as far as a reply can hold it.
    let k = a.k.unwrap_or(if a.radius.is_some() { K_MAX } else { K_DEFAULT });
    if k == 0 {
        fail!(code::USAGE, "-k 0: ask for at least one result");
    }
    if k > K_MAX {
        fail!(code::USAGE, "-k {k}: at most {K_MAX} results are possible");
    }
    if a.radius.is_some_and(f64::is_nan) {
        fail!(code::USAGE, "--radius: not a number");
    }
    let (dim, queries) = a.source.read()?;
    let mut session = Session::open(&a.path, Intent::Read)?;
    effort_fits(a, &mut session)?;
    session.warn_unindexed();
    // An .ivecs file holds numbers only: its writer refuses wide ids before anything is printed.
    let mut ivecs = a.ivecs.as_deref().map(IvecsWriter::create).transpose()?;
    let total = queries.len() / dim;
    let bar = show::progress(total as u64, "searching");
    let start = Instant::now();
    let (mut evaluations, mut hops, mut reads) = (0, 0, 0);
    let mut spent = 0.0;
    let at_once = (RESULTS / k as usize).clamp(1, QUERIES);
    for (n, part) in queries.chunks(at_once * dim).enumerate() {
        let request = vexfs_client::Search {
            dim: dim as u32,
            queries: part,
            k,
            ef: a.ef.unwrap_or(0),
            nprobe: a.nprobe.unwrap_or(0),
            rerank: a.rerank.unwrap_or(0),
            radius: a.radius,
            filter: a.filter.as_deref(),
            paths: a.ivecs.is_none() || a.json,
            exact: a.exact,
        };
        let asked = Instant::now();
        let found = session.ask_with(a.filter.as_deref(), |c| c.search(&request))?;
        spent += asked.elapsed().as_secs_f64();
        evaluations += found.evaluations;
        hops += found.hops;
        reads += found.reads;
        for (i, result) in found.queries.iter().enumerate() {
            let query = n * at_once + i;
            if a.k.is_none() && result.hits.len() == K_MAX as usize {
                eprintln!("vexfs: query {query}: more results than {K_MAX} in this radius; the farthest are left out");
            }
            if let Some(w) = &mut ivecs {
                w.row(result.hits.iter().map(|h| h.id))?;
            }
            if a.json {
                show::line(to_json(query, result, a.stats))?;
            } else if ivecs.is_none() {
                print(query, total, result)?;
            }
        }
        bar.inc(found.queries.len() as u64);
    }
    bar.finish_and_clear();
    if let Some(w) = ivecs {
        w.finish()?;
    }
    if a.stats && !a.json {
        eprintln!(
            "{total} queries in {:.3} s ({:.0}/s): {:.1} distance evaluations and {:.1} nodes visited a query, {reads} pages of vectors read",
            start.elapsed().as_secs_f64(),
            total as f64 / spent.max(1e-9),
            evaluations as f64 / total.max(1) as f64,
            hops as f64 / total.max(1) as f64
        );
    }
    let damaged = session.ask(|c| c.info())?.damaged;
    if damaged > 0 {
        // The results are right, but records that no one can compare any more may be missing from them.
        fail!(
            code::DAMAGED,
            "{}: {damaged} records have damaged vectors and were not searched; insert them again or delete them (vexfs list --json --vectors names them)",
            session.name()
        );
    }
    session.close()
}

/// Refuses a number that the collection's index kind does not know. (`--ef` is ignored by flat.)
fn effort_fits(a: &Search, session: &mut Session) -> Done {
    if a.ef.or(a.nprobe).or(a.rerank).is_none() {
        return Ok(());
    }
    let kind = session.ask(|c| c.info())?.schema.index;
    for (given, option, fits) in [
        (a.ef, "--ef", matches!(kind, IndexKind::Hnsw | IndexKind::Flat)),
        (a.nprobe, "--nprobe", kind == IndexKind::Ivf),
        (a.rerank, "--rerank", matches!(kind, IndexKind::Pq | IndexKind::Lsh)),
    ] {
        if given.is_some() && !fits {
            let right = match kind {
                IndexKind::Flat => "a flat index needs no such number",
                IndexKind::Hnsw => "use --ef",
                IndexKind::Ivf => "use --nprobe",
                IndexKind::Pq | IndexKind::Lsh => "use --rerank",
                _ => "leave it away",
            };
            fail!(code::USAGE, "{option}: the index of {} is {kind}: {right}", session.name());
        }
    }
    Ok(())
}

/// One query's results in JSON.
fn to_json(query: usize, r: &QueryResult, stats: bool) -> Value {
    let mut o = Map::new();
    o.insert("query".into(), query.into());
    o.insert("results".into(), r.hits.iter().map(hit).collect());
    if stats {
        o.insert("evaluations".into(), r.evaluations.into());
        o.insert("visited".into(), r.hops.into());
    }
    Value::from(o)
}

fn hit(h: &Hit) -> Value {
    let mut o = Map::new();
    o.insert("id".into(), h.id.into());
    o.insert("distance".into(), h.distance.into());
    put_paths(&mut o, &h.paths);
    Value::from(o)
}

/// The names of a file: `path`, and all of them in `paths` if it has several in the collection.
pub fn put_paths(o: &mut Map<String, Value>, paths: &[Vec<u8>]) {
    if let Some(first) = paths.first() {
        show::put_name(o, "path", first);
    }
    if paths.len() > 1 {
        let all = paths.iter().map(|p| {
            let mut one = Map::new();
            show::put_name(&mut one, "path", p);
            Value::from(one)
        });
        o.insert("paths".into(), all.collect());
    }
}

fn print(query: usize, total: usize, r: &QueryResult) -> Done {
    if total > 1 {
        show::line(format!("query {query}"))?;
    }
    for h in &r.hits {
        let paths: Vec<_> = h.paths.iter().map(|p| show::name(p)).collect();
        let what = if paths.is_empty() { h.id.to_string() } else { paths.join("  ") };
        // What would be shown as -0 is a plain 0.
        let distance = if h.distance.abs() < 5e-7 { 0.0 } else { h.distance };
        show::line(format!("{distance:12.6}  {what}"))?;
    }
    Ok(())
}

// SPDX-License-Identifier: GPL-2.0-only
//! insert: vectors in batches, each batch one request.

use crate::args::{Insert, Sync};
use crate::data::{read_ids, AttrLines};
use crate::fail;
use crate::fail::{code, Done};
use crate::session::{Intent, Session};
use crate::show;
use serde_json::json;
use std::time::Instant;
use vexfs_client::wire::FRAME_MAX;
use vexfs_client::{AttrValue, Attrs};

/// Most bytes of one request that are used for records; the frame's limit with room for heads.
pub const REQUEST_BYTES: usize = FRAME_MAX / 2;

/// Bytes of a record's attributes in a request, at most.
pub fn attrs_bytes(attrs: &Attrs) -> usize {
    attrs
        .iter()
        .map(|(name, v)| {
            4 + name.len()
                + match v {
                    AttrValue::String(s) => s.len(),
                    AttrValue::Bytes(b) => b.len(),
                    _ => 8,
                }
        })
        .sum()
}

/// `vexfs insert`.
pub fn insert(a: &Insert) -> Done {
    let mut source = a.source.open()?;
    let (dim, rows) = (source.dim(), source.rows());
    let ids = a.ids.as_deref().map(read_ids).transpose()?;
    if let Some(ids) = &ids {
        if ids.len() as u64 != rows {
            fail!(code::USAGE, "--ids: {} ids for {rows} vectors; there has to be one for each", ids.len());
        }
    }
    let mut lines = a.attrs.as_deref().map(AttrLines::open).transpose()?;
    let mut session = Session::open(&a.path, Intent::Change)?;
    let result = insert_all(a, source.as_mut(), dim, ids.as_deref(), lines.as_mut(), &mut session);
    // The records are durable; what follows only makes the next search fast.
    let result = result.and_then(|done| session.settle().map(|()| done));
    let done = match result {
        Ok(done) => done,
        Err(e) => {
            session.close()?;
            return Err(e);
        }
    };
    session.close()?;
    let rate = done.count as f64 / done.seconds.max(1e-9);
    if a.json {
        let text =
            json!({"inserted": done.count, "first_id": done.first_id, "seconds": done.seconds, "per_second": rate});
        return show::line(text);
    }
    let ids = match (done.first_id, &a.ids) {
        (Some(first), None) if done.count > 0 => format!(", ids {first} to {}", first + done.count - 1),
        _ => String::new(),
    };
    show::line(format!(
        "{} vectors inserted and durable in {:.2} s ({}/s){ids}",
        show::count(done.count),
        done.seconds,
        show::count(rate as u64)
    ))
}

struct Inserted {
    count: u64,
    first_id: Option<u64>,
    seconds: f64,
}

fn insert_all(
    a: &Insert,
    source: &mut dyn crate::data::Rows,
    dim: usize,
    ids: Option<&[u64]>,
    mut lines: Option<&mut AttrLines>,
    session: &mut Session,
) -> Done<Inserted> {
    let batch = if a.sync == Sync::Each { 1 } else { (a.batch as usize).min(REQUEST_BYTES / (dim * 4 + 16)).max(1) };
    let bar = show::progress(source.rows(), "inserting");
    let start = Instant::now();
    let mut vectors = Vec::new();
    let (mut count, mut first_id) = (0u64, None);
    loop {
        source.next(batch, &mut vectors)?;
        if vectors.is_empty() {
            break;
        }
        let n = vectors.len() / dim;
        let mut attrs = Vec::new();
        if let Some(lines) = lines.as_deref_mut() {
            for i in 0..n {
                match lines.attrs()? {
                    Some(x) => attrs.push(x),
                    None => fail!(
                        code::USAGE,
                        "--attrs: only {} lines for {} vectors; there has to be one for each ({count} vectors are inserted)",
                        count + i as u64,
                        source.rows()
                    ),
                }
            }
        }
        // Attributes may be large: a request takes as many records as fit.
        let mut from = 0;
        while from < n {
            let mut to = if attrs.is_empty() { n } else { from };
            let mut bytes = 0;
            while to < n {
                bytes += dim * 4 + 16 + attrs_bytes(&attrs[to]);
                if bytes > REQUEST_BYTES && to > from {
                    break;
                }
                to += 1;
            }
            let ids = ids.map(|ids| &ids[count as usize..count as usize + to - from]);
            let request = vexfs_client::Insert {
                dim: dim as u32,
                vectors: &vectors[from * dim..to * dim],
                ids,
                attrs: if attrs.is_empty() { None } else { Some(&attrs[from..to]) },
                if_absent: a.if_absent,
                durable: a.sync != Sync::End,
            };
            let done = session.ask(|c| c.insert(&request)).map_err(|mut e| {
                if count > 0 {
                    e.text += &format!(" ({count} vectors before were inserted)");
                }
                e
            })?;
            first_id = first_id.or(Some(done.first_id));
            count += done.count;
            bar.inc(done.count);
            from = to;
        }
    }
    if let Some(lines) = lines {
        if lines.attrs()?.is_some() {
            fail!(code::USAGE, "{}: more lines than vectors ({count} vectors are inserted)", lines.here());
        }
    }
    if a.sync == Sync::End && count > 0 {
        session.ask(|c| c.sync())?;
    }
    bar.finish_and_clear();
    Ok(Inserted { count, first_id, seconds: start.elapsed().as_secs_f64() })
}

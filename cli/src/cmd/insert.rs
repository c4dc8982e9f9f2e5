// SPDX-License-Identifier: GPL-2.0-only
//! insert: vectors in batches, each batch one request.

use crate::args::{Insert, Sync};
use crate::data::{read_ids, AttrLines};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::session::{Intent, Session};
use crate::show;
use serde_json::json;
use std::path::Path;
use std::time::Instant;
use vexfs_client::wire::FRAME_MAX;
use vexfs_client::{AttrValue, Attrs, Error, Refused};

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
    // What was inserted is durable; what follows only makes the next search fast, so it is done for a part as well.
    let indexing = Instant::now();
    let settled = session.settle();
    let done = match result.and_then(|done| settled.map(|()| done)) {
        Ok(done) => done,
        Err(e) => {
            // That the volume could not be closed cleanly is the lesser trouble.
            let _ = session.close();
            return Err(e);
        }
    };
    session.close()?;
    let indexing = indexing.elapsed().as_secs_f64();
    let rate = done.count as f64 / done.seconds.max(1e-9);
    if a.json {
        let text = json!({
            "inserted": done.count, "first_id": done.first_id, "seconds": done.seconds, "per_second": rate,
            "indexing_seconds": indexing,
        });
        return show::line(text);
    }
    let ids = match (done.first_id, &a.ids) {
        (Some(first), None) if done.count > 0 => format!(", ids {first} to {}", first + done.count - 1),
        _ => String::new(),
    };
    let indexed = if indexing >= 0.1 { format!("; indexed in another {indexing:.2} s") } else { String::new() };
    show::line(format!(
        "{} inserted and durable in {:.2} s ({}/s){indexed}{ids}",
        show::counted(done.count, "vector"),
        done.seconds,
        show::count(rate as u64)
    ))
}

struct Inserted {
    count: u64,
    first_id: Option<u64>,
    seconds: f64,
}

/// A failure that comes after `count` records were inserted.
fn before(mut e: Failure, count: u64) -> Failure {
    if count > 0 {
        let were = if count == 1 { "was" } else { "were" };
        e.text += &format!(" ({} before it {were} inserted)", show::counted(count, "vector"));
    }
    e
}

/// The files that the rows of a request come from.
#[derive(Clone, Copy, Default)]
pub struct Input<'a> {
    /// Vectors.
    pub vectors: Option<&'a Path>,
    /// Ids.
    pub ids: Option<&'a Path>,
    /// Attributes.
    pub attrs: Option<&'a Path>,
}

/// Why a request was refused that began with row `first` of the input; the volume counts from the start of the
/// request, people from that of the file.
pub fn refusal(session: &Session, input: &Input, first: u64, e: Error) -> Failure {
    let (e, done) = match e {
        // How many were done is said for the whole input.
        Error::Refused(r) => (Error::Refused(Refused { done: 0, ..r.clone() }), r.done),
        e => (e, 0),
    };
    let mut out = session.failure(&e, None);
    let text = e.to_string();
    if let (Error::Refused(_) | Error::Request(_), Some((what, at, rest))) = (&e, numbered(&text)) {
        let file = match what {
            "vector" => input.vectors,
            _ if rest.starts_with("its id") => input.ids.or(input.vectors),
            _ => input.attrs.or(input.vectors),
        };
        let file = file.map(|f| format!("{}: ", f.display())).unwrap_or_default();
        let row = first.saturating_add(at);
        out.text = format!("{}: {file}row {row} (the first is 0): {rest}", session.name());
    }
    before(out, first + done)
}

/// Takes `vector 7: it is bad` and `record 7 of the request: it is bad` apart.
fn numbered(text: &str) -> Option<(&str, u64, &str)> {
    let (head, rest) = text.split_once(": ")?;
    let (what, number) = head.split_once(' ')?;
    let number = number.trim_end_matches(" of the request").parse().ok()?;
    matches!(what, "vector" | "record").then_some((what, number, rest))
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
    let input = Input { vectors: a.source.file(), ids: a.ids.as_deref(), attrs: a.attrs.as_deref() };
    let bar = show::progress(source.rows(), "inserting");
    let start = Instant::now();
    let mut vectors = Vec::new();
    let (mut count, mut first_id) = (0u64, None);
    loop {
        source.next(batch, &mut vectors).map_err(|e| before(e, count))?;
        if vectors.is_empty() {
            break;
        }
        let n = vectors.len() / dim;
        let mut attrs = Vec::new();
        if let Some(lines) = lines.as_deref_mut() {
            for i in 0..n {
                match lines.attrs().map_err(|e| before(e, count))? {
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
            let done = session.try_ask(|c| c.insert(&request)).map_err(|e| refusal(session, &input, count, e))?;
            first_id = first_id.or(Some(done.first_id));
            count += done.count;
            bar.inc(done.count);
            from = to;
        }
    }
    if let Some(lines) = lines {
        if lines.attrs().map_err(|e| before(e, count))?.is_some() {
            fail!(code::USAGE, "{}: more lines than vectors ({count} vectors are inserted)", lines.here());
        }
    }
    if a.sync == Sync::End && count > 0 {
        session.ask(|c| c.sync())?;
    }
    bar.finish_and_clear();
    Ok(Inserted { count, first_id, seconds: start.elapsed().as_secs_f64() })
}

// SPDX-License-Identifier: GPL-2.0-only
//! Records one by one: get, list, update, delete; and the embeddings of files.

use super::insert::{attrs_bytes, refusal, Input, REQUEST_BYTES};
use super::search::put_paths;
use crate::args::{Delete, Embed, Get, List, Update};
use crate::data::{from_json, read_ids, to_json, AttrLines, Null, VectorSource};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::session::{Intent, Session};
use crate::show;
use serde::Serialize;
use serde_json::{json, Map, Value};
use vexfs_client::{Changed, FileRef, Metric, Record, Want};

/// Ids that do not exist which a message names at most.
const NAMED: usize = 10;

/// A record as one line of JSON. (A struct, so that vectors are printed as the f32 that they are.)
#[derive(Serialize)]
struct Line<'a> {
    id: u64,
    #[serde(flatten)]
    names: Map<String, Value>,
    #[serde(skip_serializing_if = "is_false")]
    stale: bool,
    #[serde(skip_serializing_if = "is_false")]
    unindexed: bool,
    #[serde(skip_serializing_if = "is_false")]
    damaged: bool,
    attrs: Map<String, Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vector: Option<&'a [f32]>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_false(b: &bool) -> bool {
    !b
}

fn record_json(r: &Record, vector: bool) -> Done<String> {
    let mut names = Map::new();
    put_paths(&mut names, &r.paths);
    let line = Line {
        id: r.id,
        names,
        stale: r.stale,
        unindexed: r.unindexed,
        damaged: r.damaged,
        attrs: to_json(&r.attrs),
        vector: if vector && !r.damaged { Some(&r.vector) } else { None },
    };
    serde_json::to_string(&line).map_err(|e| Failure::new(code::FAILED, e.to_string()))
}

fn print_record(r: &Record) -> Done {
    let paths: Vec<_> = r.paths.iter().map(|p| show::name(p)).collect();
    let mut text = if paths.is_empty() { r.id.to_string() } else { paths.join("  ") };
    for (on, mark) in [(r.stale, "stale"), (r.unindexed, "not indexed"), (r.damaged, "damaged")] {
        if on {
            text += &format!("  ({mark})");
        }
    }
    if !r.attrs.is_empty() {
        text += &format!("  {}", Value::from(to_json(&r.attrs)));
    }
    show::line(text)
}

/// `vexfs get`.
pub fn get(a: &Get) -> Done {
    let mut s = Session::open(&a.path, Intent::Read)?;
    let mut missing = Vec::new();
    for ids in a.ids.chunks(256) {
        let got = s.ask(|c| c.get(ids, Want::ALL))?;
        for r in &got.records {
            if !r.present {
                missing.push(r.id.to_string());
            } else if a.json {
                show::line(record_json(r, true)?)?;
            } else {
                print_record(r)?;
                if r.damaged {
                    show::line("  its vector is damaged")?;
                } else {
                    let shown: Vec<_> = r.vector.iter().take(8).map(|x| x.to_string()).collect();
                    let more = if r.vector.len() > 8 {
                        format!(", … {} in all (--json)", r.vector.len())
                    } else {
                        String::new()
                    };
                    show::line(format!("  [{}{more}]", shown.join(", ")))?;
                }
            }
        }
    }
    if !missing.is_empty() {
        fail!(code::NOT_FOUND, "{}: no record {}", s.name(), missing.join(", "));
    }
    s.close()
}

/// `vexfs list`.
pub fn list(a: &List) -> Done {
    let mut s = Session::open(&a.path, Intent::Read)?;
    let want = Want { vectors: a.vectors, attrs: true, paths: true };
    let mut left = a.limit.unwrap_or(u64::MAX);
    let mut cursor = Some(0);
    while let (Some(from), true) = (cursor, left > 0) {
        let page = vexfs_client::List {
            cursor: from,
            max_records: u32::try_from(left.min(10_000)).unwrap_or(10_000),
            max_bytes: 8 << 20,
            filter: a.filter.as_deref(),
            want,
        };
        let page = s.ask_with(a.filter.as_deref(), |c| c.list(&page))?;
        for r in &page.records {
            if a.json {
                show::line(record_json(r, a.vectors)?)?;
            } else {
                print_record(r)?;
            }
        }
        left -= (page.records.len() as u64).min(left);
        cursor = page.next;
    }
    s.close()
}

/// `vexfs update`.
pub fn update(a: &Update) -> Done {
    let given = a.ids.as_deref().map(read_ids).transpose()?;
    let mut lines = AttrLines::open(&a.attrs)?;
    let mut s = Session::open(&a.path, Intent::Change)?;
    let mut total = Changed::default();
    let input = Input { ids: a.ids.as_deref(), attrs: Some(&a.attrs), ..Input::default() };
    let mut missing = Vec::new();
    let bar = match &given {
        Some(ids) => show::progress(ids.len() as u64, "updating"),
        None => show::working("updating"),
    };
    let mut row = 0;
    let (mut ids, mut attrs, mut bytes) = (Vec::new(), Vec::new(), 0);
    let result = (|| -> Done {
        loop {
            let object = lines.object()?;
            let last = object.is_none();
            if let Some(mut object) = object {
                let id = match &given {
                    Some(ids) => match ids.get(row) {
                        Some(id) => *id,
                        None => fail!(code::USAGE, "{}: more lines than ids ({})", lines.here(), ids.len()),
                    },
                    None => match object.remove("id").as_ref().and_then(Value::as_u64) {
                        Some(id) => id,
                        None => fail!(
                            code::USAGE,
                            "{}: no member \"id\" with a record id (or give the ids with --ids)",
                            lines.here()
                        ),
                    },
                };
                row += 1;
                let null = if a.replace { Null::Absent } else { Null::Remove };
                let x = from_json(&lines.here(), object, null)?;
                bytes += attrs_bytes(&x) + 16;
                ids.push(id);
                attrs.push(x);
            }
            if !ids.is_empty() && (last || ids.len() >= 1000 || bytes > REQUEST_BYTES / 2) {
                let first = (row - ids.len()) as u64;
                let done = s
                    .try_ask(|c| c.update_attrs(&ids, &attrs, a.replace, true))
                    .map_err(|e| refusal(&s, &input, first, e))?;
                total.done += done.done;
                total.missing += done.missing;
                if done.missing > 0 {
                    absent(&mut s, &ids, &mut missing)?;
                }
                bar.inc(ids.len() as u64);
                ids.clear();
                attrs.clear();
                bytes = 0;
            }
            if last {
                break;
            }
        }
        if let Some(ids) = &given {
            if ids.len() != row {
                fail!(code::USAGE, "--ids: {} ids for {row} lines; there has to be one for each", ids.len());
            }
        }
        Ok(())
    })();
    bar.finish_and_clear();
    let name = s.name().to_string();
    s.close()?;
    result?;
    report(&name, "updated", total, &missing, a.json)
}

/// Adds those of the ids that do not exist, as many as are named.
fn absent(s: &mut Session, ids: &[u64], missing: &mut Vec<u64>) -> Done {
    for part in ids.chunks(1000) {
        if missing.len() > NAMED {
            break;
        }
        let got = s.ask(|c| c.get(part, Want::default()))?;
        missing.extend(got.records.iter().filter(|r| !r.present).map(|r| r.id));
    }
    Ok(())
}

/// `vexfs delete`.
pub fn delete(a: &Delete) -> Done {
    let mut s = Session::open(&a.path, Intent::Change)?;
    let mut missing = Vec::new();
    let bar = show::working("deleting");
    let done = match &a.filter {
        Some(filter) => s.ask_with(Some(filter), |c| c.delete_where(filter, true)),
        None => {
            let looked = absent(&mut s, &a.ids, &mut missing);
            looked.and_then(|()| s.ask(|c| c.delete(&a.ids, true)))
        }
    };
    bar.finish_and_clear();
    let name = s.name().to_string();
    s.close()?;
    report(&name, "deleted", done?, &missing, a.json)
}

/// Says what was done; ids that do not exist are a failure, like files that do not exist.
fn report(name: &str, what: &str, c: Changed, missing: &[u64], json: bool) -> Done {
    if json {
        show::line(json!({what: c.done, "missing": c.missing}))?;
    } else {
        show::line(format!("{} {what}", show::counted(c.done, "record")))?;
    }
    if c.missing > 0 {
        let mut ids: Vec<_> = missing.iter().take(NAMED).map(u64::to_string).collect();
        if c.missing > ids.len() as u64 && !ids.is_empty() {
            ids.push(format!("… ({} in all)", show::count(c.missing)));
        }
        if ids.is_empty() {
            fail!(code::NOT_FOUND, "{name}: {} of the ids do not exist", show::count(c.missing));
        }
        fail!(code::NOT_FOUND, "{name}: no record {}", ids.join(", "));
    }
    Ok(())
}

/// Dimension and metric of a directory that is a collection; `None` also if that is not to be known.
fn shape(s: &mut Session) -> Option<(usize, Metric)> {
    s.ask(|c| c.info()).ok().map(|i| (i.schema.dim as usize, i.schema.metric))
}

/// Refuses what a collection would keep, but never find.
fn check_embedding(shown: &str, vector: &[f32], shape: Option<(usize, Metric)>) -> Done {
    let Some((dim, metric)) = shape else { return Ok(()) };
    if vector.len() != dim {
        fail!(code::USAGE, "{shown}: the vector has {} dimensions, the collection has {dim}", vector.len());
    }
    if metric == Metric::Cosine && vector.iter().all(|x| *x == 0.0) {
        fail!(code::USAGE, "{shown}: a zero vector has no direction, which the collection's metric cosine needs");
    }
    Ok(())
}

/// `vexfs embed`.
pub fn embed(a: &Embed) -> Done {
    let source =
        VectorSource { vector: a.source.vector.clone(), npy: a.source.npy.clone(), fvecs: a.source.fvecs.clone() };
    let mut rows = if a.source.remove || a.source.show { None } else { Some(source.open()?) };
    if let Some(rows) = &rows {
        if rows.rows() != a.files.len() as u64 {
            fail!(code::USAGE, "{} vectors for {} files; there has to be one for each", rows.rows(), a.files.len());
        }
    }
    let intent = if a.source.show { Intent::Read } else { Intent::Change };
    let bar = show::progress(a.files.len() as u64, "embedding");
    let mut vector = Vec::new();
    // Files of one directory share a session.
    let mut open: Option<(std::ffi::OsString, Session)> = None;
    let mut collection = None;
    let result = (|| -> Done {
        for text in &a.files {
            let dir = std::path::Path::new(text).parent().map(|p| p.as_os_str().to_os_string()).unwrap_or_default();
            let plain = !std::fs::symlink_metadata(text).is_ok_and(|m| m.is_symlink());
            let name = match &open {
                Some((d, _)) if *d == dir && plain => {
                    use std::os::unix::ffi::OsStrExt;
                    match std::path::Path::new(text).file_name() {
                        Some(n) => n.as_bytes().to_vec(),
                        None => fail!(code::USAGE, "{}: is no file", text.to_string_lossy()),
                    }
                }
                _ => {
                    if let Some((_, mut s)) = open.take() {
                        if !a.source.show {
                            s.settle_collection()?;
                        }
                        s.close()?;
                    }
                    let (mut s, name) = Session::open_parent(text, intent)?;
                    collection = if rows.is_some() { shape(&mut s) } else { None };
                    open = Some((dir, s));
                    name
                }
            };
            let Some((_, s)) = &mut open else { continue };
            let file = FileRef::Name(&name);
            let shown = text.to_string_lossy();
            let named = |mut e: Failure, session: &str| {
                if e.text.ends_with("only regular files carry embeddings") {
                    e.code = code::USAGE;
                }
                // The session is named after the first file of its directory.
                if let Some(rest) = e.text.strip_prefix(session) {
                    e.text = format!("{shown}{rest}");
                }
                e
            };
            let session = s.name().to_string();
            if a.source.show {
                let e = s.ask(|c| c.embedding(file)).map_err(|e| named(e, &session))?;
                #[derive(Serialize)]
                struct Shown<'a> {
                    path: &'a str,
                    id: u64,
                    dim: usize,
                    stale: bool,
                    vector: &'a [f32],
                }
                let id = vexfs_client::wire::FILE_ID_BASE.saturating_add(e.ino);
                let line = Shown { path: &shown, id, dim: e.vector.len(), stale: e.stale, vector: &e.vector };
                show::line(serde_json::to_string(&line).map_err(|e| Failure::new(code::FAILED, e.to_string()))?)?;
            } else if let Some(rows) = &mut rows {
                rows.next(1, &mut vector)?;
                check_embedding(&shown, &vector, collection).map_err(|e| match s.try_ask(|c| c.embedding(file)) {
                    // That the file is not there comes first.
                    Err(gone) if gone.errno() == Some(libc::ENOENT) => named(s.failure(&gone, None), &session),
                    _ => e,
                })?;
                s.ask(|c| c.embed(file, &vector, false)).map_err(|e| named(e, &session))?;
            } else {
                s.ask(|c| c.remove_embedding(file, false)).map_err(|e| named(e, &session))?;
            }
            bar.inc(1);
        }
        match &mut open {
            Some((_, s)) if a.sync && !a.source.show => s.ask(|c| c.sync()),
            _ => Ok(()),
        }
    })();
    bar.finish_and_clear();
    if let Some((_, mut s)) = open {
        if !a.source.show {
            s.settle_collection()?;
        }
        s.close()?;
    }
    result
}

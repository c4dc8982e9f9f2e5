// SPDX-License-Identifier: GPL-2.0-only
//! export and import: a collection as files that other programs read, and back, without loss.
//!
//! The directory holds `collection.json` (what the collection is made with), `vectors.npy` (float32, a row for each
//! record in order of id), `ids.npy` (uint64), `attrs.jsonl` (a line for each record) and `files.jsonl` (for each
//! record that is a file its id and names). All are of one state of the collection.

use super::collection::schema_to_json;
use super::insert::{attrs_bytes, REQUEST_BYTES};
use crate::args::{Export, Import};
use crate::data::{read_ids, to_json, AttrLines, NpyWriter, Rows, VectorSource};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::session::{Intent, Session};
use crate::show;
use base64::Engine;
use serde_json::{json, Map, Value};
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use vexfs_client::wire::FILE_ID_BASE;
use vexfs_client::{Element, Error, FileRef, Insert, List, Records, Schema, Want};

/// How often export begins anew when the collection changes under it.
const ATTEMPTS: usize = 10;

/// `vexfs export`.
pub fn export(a: &Export) -> Done {
    // Before anything is made: it has to be a collection that may be read.
    let mut s = Session::open(&a.path, Intent::Read)?;
    s.ask(|c| c.info())?;
    match std::fs::read_dir(&a.dir) {
        Ok(mut entries) => {
            if entries.next().is_some() {
                fail!(code::EXISTS, "{}: is not empty; give a new directory", a.dir.display());
            }
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir(&a.dir).map_err(|e| Failure::io(a.dir.display(), &e))?;
        }
        Err(e) => return Err(Failure::io(a.dir.display(), &e)),
    }
    for _ in 0..ATTEMPTS {
        if let Some(done) = attempt(&mut s, &a.dir)? {
            s.close()?;
            let text = json!({"records": done.rows, "files": done.files, "not_indexed": done.unindexed, "damaged": done.damaged});
            if a.json {
                show::line(text)?;
            } else {
                show::line(format!("{} records exported to {}", show::count(done.rows), a.dir.display()))?;
            }
            if done.damaged > 0 {
                fail!(code::DAMAGED, "{} records have damaged vectors and were left out", done.damaged);
            }
            return Ok(());
        }
    }
    fail!(code::BUSY, "{}: changes faster than it can be read; try again when less is inserted", s.name())
}

#[derive(Default)]
struct Exported {
    rows: u64,
    files: u64,
    unindexed: u64,
    damaged: u64,
}

/// Calls `f` for every page; false if the collection changed meanwhile.
fn pages(s: &mut Session, want: Want, change: &mut Option<u64>, mut f: impl FnMut(&Records) -> Done) -> Done<bool> {
    let mut cursor = Some(0);
    while let Some(from) = cursor {
        let page = s.ask(|c| c.list(&List { cursor: from, max_bytes: 16 << 20, want, ..List::default() }))?;
        if *change.get_or_insert(page.change) != page.change {
            return Ok(false);
        }
        f(&page)?;
        cursor = page.next;
    }
    Ok(true)
}

/// One try; `None`: the collection changed meanwhile.
fn attempt(s: &mut Session, dir: &Path) -> Done<Option<Exported>> {
    let info = s.ask(|c| c.info())?;
    let dim = info.schema.dim;
    // First the number of rows, which the files begin with.
    let (mut done, mut change) = (Exported::default(), None);
    // Which vectors are damaged is only said with the vectors.
    let look = Want { vectors: info.damaged > 0, ..Want::default() };
    let counted = pages(s, look, &mut change, |page| {
        for r in &page.records {
            match (r.unindexed, r.damaged) {
                (true, _) => done.unindexed += 1,
                (_, true) => done.damaged += 1,
                _ => done.rows += 1,
            }
        }
        Ok(())
    })?;
    if !counted {
        return Ok(None);
    }
    let bar = show::progress(done.rows, "exporting");
    let mut vectors = NpyWriter::<f32>::create(&dir.join("vectors.npy"), &[done.rows, u64::from(dim)])?;
    let mut ids = NpyWriter::<u64>::create(&dir.join("ids.npy"), &[done.rows])?;
    let mut attrs = Lines::create(&dir.join("attrs.jsonl"))?;
    let mut files = Lines::create(&dir.join("files.jsonl"))?;
    let mut rows = 0;
    let mut number_of_files = 0;
    let same = pages(s, Want::ALL, &mut change, |page| {
        for r in page.records.iter().filter(|r| !r.unindexed && !r.damaged) {
            rows += 1;
            if rows > done.rows {
                return Ok(()); // it changed; the pages' change counter says so too
            }
            for x in &r.vector {
                vectors.push(x)?;
            }
            ids.push(&r.id)?;
            attrs.put(&Value::from(to_json(&r.attrs)))?;
            if r.id >= FILE_ID_BASE {
                number_of_files += 1;
                let names = r.paths.iter().map(|p| {
                    let mut o = Map::new();
                    show::put_name(&mut o, "path", p);
                    Value::from(o)
                });
                files.put(&json!({"id": r.id, "names": names.collect::<Vec<_>>()}))?;
            }
        }
        bar.set_position(rows);
        Ok(())
    })?;
    bar.finish_and_clear();
    if !same || rows != done.rows {
        return Ok(None);
    }
    done.files = number_of_files;
    vectors.finish()?;
    ids.finish()?;
    attrs.finish()?;
    files.finish()?;
    let mut head = Lines::create(&dir.join("collection.json"))?;
    head.put(&Value::from(schema_to_json(&info.schema)))?;
    head.finish()?;
    Ok(Some(done))
}

/// A file of lines of JSON.
struct Lines<'a> {
    path: std::borrow::Cow<'a, Path>,
    file: BufWriter<File>,
}

impl Lines<'_> {
    fn create(path: &Path) -> Done<Lines<'static>> {
        let file = File::create(path).map_err(|e| Failure::io(path.display(), &e))?;
        Ok(Lines { path: path.to_path_buf().into(), file: BufWriter::new(file) })
    }

    fn put(&mut self, v: &Value) -> Done {
        writeln!(self.file, "{v}").map_err(|e| Failure::io(self.path.display(), &e))
    }

    fn finish(mut self) -> Done {
        self.file.flush().map_err(|e| Failure::io(self.path.display(), &e))
    }
}

/// `vexfs import`.
pub fn import(a: &Import) -> Done {
    let schema = read_schema(&a.dir.join("collection.json"))?;
    let source = VectorSource { npy: Some(a.dir.join("vectors.npy")), ..VectorSource::default() };
    let mut vectors = source.open()?;
    let ids = read_ids(&a.dir.join("ids.npy"))?;
    let mut attrs = AttrLines::open(&a.dir.join("attrs.jsonl"))?;
    let names = read_names(&a.dir.join("files.jsonl"))?;
    if ids.len() as u64 != vectors.rows() || vectors.dim() != schema.dim as usize {
        fail!(
            code::USAGE,
            "{}: its files do not fit each other ({} ids, {} vectors of dimension {}); export again",
            a.dir.display(),
            ids.len(),
            vectors.rows(),
            vectors.dim()
        );
    }
    let mut s = Session::open(&a.path, Intent::Create)?;
    let result = import_all(&mut s, &schema, vectors.as_mut(), &ids, &mut attrs, &names);
    let result = result.and_then(|done| s.settle().map(|()| done));
    let (records, files, skipped) = match result {
        Ok(done) => done,
        Err(e) => {
            // A directory that was made for it goes again, unless records are in it.
            s.abandon()?;
            return Err(e);
        }
    };
    s.close()?;
    if a.json {
        return show::line(json!({"records": records, "files": files, "files_not_there": skipped}));
    }
    show::line(format!("{} records imported, {} files embedded", show::count(records), show::count(files)))?;
    if skipped > 0 {
        show::line(format!(
            "{} files are not in the directory and got no embedding; copy them first",
            show::count(skipped)
        ))?;
    }
    Ok(())
}

/// Gives the numbers of records, of files, and of files that are not there.
fn import_all(
    s: &mut Session,
    schema: &Schema,
    vectors: &mut dyn Rows,
    ids: &[u64],
    lines: &mut AttrLines,
    names: &HashMap<u64, Vec<Vec<u8>>>,
) -> Done<(u64, u64, u64)> {
    match s.ask(|c| c.info()) {
        Ok(info) if (info.schema.dim, info.schema.metric) != (schema.dim, schema.metric) => fail!(
            code::EXISTS,
            "{}: is a collection of dimension {} and metric {}, the export has {} and {}",
            s.name(),
            info.schema.dim,
            info.schema.metric,
            schema.dim,
            schema.metric
        ),
        Ok(_) => {}
        Err(_) => drop(s.ask(|c| c.create(schema))?),
    }
    let dim = schema.dim as usize;
    let bar = show::progress(ids.len() as u64, "importing");
    let batch = (REQUEST_BYTES / 2 / (dim * 4 + 16)).clamp(1, 5000);
    let (mut records, mut files, mut skipped) = (0, 0, 0);
    let mut part = Vec::new();
    let mut at = 0;
    while at < ids.len() {
        vectors.next(batch, &mut part)?;
        let n = part.len() / dim;
        if n == 0 {
            fail!(code::USAGE, "vectors.npy ends too early; export again");
        }
        // Bulk records go together, files one by one.
        let mut bulk: (Vec<u64>, Vec<f32>, Vec<_>, usize) = Default::default();
        for (id, vector) in ids[at..at + n].iter().zip(part.chunks_exact(dim)) {
            let Some(x) = lines.attrs()? else { fail!(code::USAGE, "attrs.jsonl ends too early; export again") };
            if *id < FILE_ID_BASE {
                bulk.3 += attrs_bytes(&x);
                bulk.0.push(*id);
                bulk.1.extend_from_slice(vector);
                bulk.2.push(x);
                if bulk.3 > REQUEST_BYTES / 2 {
                    records += send(s, schema.dim, &mut bulk)?;
                }
                continue;
            }
            let mut there = false;
            for name in names.get(id).into_iter().flatten() {
                match s.ask(|c| c.embed(FileRef::Name(name), vector, false)) {
                    Ok(()) => {
                        there = true;
                        break; // its other names are links to the same file
                    }
                    Err(e) if e.code == code::NOT_FOUND => {}
                    Err(e) => return Err(e),
                }
            }
            *(if there { &mut files } else { &mut skipped }) += 1;
        }
        records += send(s, schema.dim, &mut bulk)?;
        at += n;
        bar.set_position(at as u64);
    }
    s.ask(|c| c.sync())?;
    bar.finish_and_clear();
    Ok((records, files, skipped))
}

/// Inserts what has been gathered.
fn send(s: &mut Session, dim: u32, bulk: &mut (Vec<u64>, Vec<f32>, Vec<vexfs_client::Attrs>, usize)) -> Done<u64> {
    let (ids, vectors, attrs, bytes) = bulk;
    if ids.is_empty() {
        return Ok(0);
    }
    let request = Insert { dim, vectors, ids: Some(ids), attrs: Some(attrs), if_absent: false, durable: false };
    let done = s.ask(|c| c.insert(&request))?;
    ids.clear();
    vectors.clear();
    attrs.clear();
    *bytes = 0;
    Ok(done.count)
}

fn read_schema(path: &Path) -> Done<Schema> {
    let text = std::fs::read(path).map_err(|e| Failure::io(path.display(), &e))?;
    let name = path.display();
    let bad = |what: &str| Failure::new(code::USAGE, format!("{name}: {what}; it is not what vexfs export wrote"));
    let o: Map<String, Value> = serde_json::from_slice(&text).map_err(|e| bad(&e.to_string()))?;
    let word = |key: &str| o.get(key).and_then(Value::as_str).ok_or_else(|| bad(&format!("no \"{key}\"")));
    let number = |key: &str| o.get(key).and_then(Value::as_u64).and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    let odd = |e: Error| bad(&e.to_string());
    let mut schema =
        Schema::new(number("dim"), word("metric")?.parse().map_err(odd)?, word("index")?.parse().map_err(odd)?);
    schema.element = match o.get("element") {
        None => Element::F32,
        Some(_) => word("element")?.parse().map_err(odd)?,
    };
    let p = &mut schema.params;
    (p.m, p.ef_construction, p.lists) = (number("m"), number("ef_construction"), number("lists"));
    (p.subvectors, p.bits, p.tables) = (number("subvectors"), number("bits"), number("tables"));
    p.seed = o.get("seed").and_then(Value::as_u64).unwrap_or(0);
    schema.model = o.get("model").and_then(Value::as_str).unwrap_or("").to_string();
    Ok(schema)
}

/// The names of files by record id; there need not be such a file.
fn read_names(path: &Path) -> Done<HashMap<u64, Vec<Vec<u8>>>> {
    let mut out = HashMap::new();
    if !path.exists() {
        return Ok(out);
    }
    let mut lines = AttrLines::open(path)?;
    while let Some(o) = lines.object()? {
        let names = o.get("names").and_then(Value::as_array).into_iter().flatten().filter_map(|n| {
            let bytes = n.get("path_bytes").and_then(Value::as_str);
            match bytes {
                Some(b) => base64::engine::general_purpose::STANDARD.decode(b).ok(),
                None => n.get("path").and_then(Value::as_str).map(|p| p.as_bytes().to_vec()),
            }
        });
        match o.get("id").and_then(Value::as_u64) {
            Some(id) => drop(out.insert(id, names.collect())),
            None => fail!(code::USAGE, "{}: no \"id\"", lines.here()),
        }
    }
    Ok(out)
}

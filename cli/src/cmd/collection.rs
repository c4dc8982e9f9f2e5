// SPDX-License-Identifier: GPL-2.0-only
//! Commands about collections as a whole.

use crate::args::{self, Collection, CreateCollection, PathJson, Reindex};
use crate::fail::Done;
use crate::session::{Intent, Session};
use crate::show;
use serde_json::{json, Map, Value};
use vexfs_client::{CollectionInfo, Element, IndexKind, IndexParams, Metric, Schema};

/// `vexfs collection …`.
pub fn run(command: &Collection) -> Done {
    match command {
        Collection::Create(a) => create(a),
        Collection::List(a) => list(a),
        Collection::Info(a) => info(a),
        Collection::Reindex(a) => reindex(a),
        Collection::Drop(a) => drop_collection(a),
    }
}

impl From<args::Metric> for Metric {
    fn from(m: args::Metric) -> Metric {
        match m {
            args::Metric::L2 => Metric::L2,
            args::Metric::Cosine => Metric::Cosine,
            args::Metric::Ip => Metric::Ip,
        }
    }
}

impl From<args::Index> for IndexKind {
    fn from(i: args::Index) -> IndexKind {
        match i {
            args::Index::Flat => IndexKind::Flat,
            args::Index::Hnsw => IndexKind::Hnsw,
            args::Index::Ivf => IndexKind::Ivf,
            args::Index::Pq => IndexKind::Pq,
            args::Index::Lsh => IndexKind::Lsh,
        }
    }
}

impl From<&args::IndexParams> for IndexParams {
    fn from(p: &args::IndexParams) -> IndexParams {
        IndexParams {
            m: p.m.unwrap_or(0),
            ef_construction: p.ef_construction.unwrap_or(0),
            lists: p.lists.unwrap_or(0),
            subvectors: p.subvectors.unwrap_or(0),
            bits: p.bits.unwrap_or(0),
            tables: p.tables.unwrap_or(0),
            seed: p.seed.unwrap_or(0),
        }
    }
}

fn create(a: &CreateCollection) -> Done {
    let schema = Schema {
        dim: a.dim,
        metric: a.metric.into(),
        element: Element::F32,
        index: a.index.into(),
        params: (&a.params).into(),
        model: a.model.clone(),
    };
    let mut s = Session::open(&a.path, Intent::Create)?;
    let made = s.ask(|c| c.create(&schema));
    let made = match made {
        Ok(info) => info,
        Err(e) => {
            // Leave the volume as it was, closed.
            s.abandon()?;
            return Err(e);
        }
    };
    let settled = s.settle();
    if a.json {
        show::line(Value::from(to_json(&made)))?;
    }
    s.close()?;
    settled
}

fn list(a: &PathJson) -> Done {
    let mut s = Session::open(&a.path, Intent::Read)?;
    for (path, info) in s.ask(|c| c.collections(true))? {
        if a.json {
            let mut o = Map::new();
            show::put_name(&mut o, "path", if path.is_empty() { b"." } else { &path });
            o.extend(to_json(&info));
            show::line(Value::from(o))?;
        } else {
            let path = if path.is_empty() { ".".to_string() } else { show::name(&path) };
            show::line(format!("{path}\t{}", summary(&info)))?;
        }
    }
    s.close()
}

fn info(a: &PathJson) -> Done {
    let mut s = Session::open(&a.path, Intent::Read)?;
    let info = s.ask(|c| c.info())?;
    if a.json {
        show::line(Value::from(to_json(&info)))?;
        return s.close();
    }
    let p = &info.schema.params;
    show::line(format!("{}: {}", s.name(), summary(&info)))?;
    let mut rows = vec![
        ("dimension", info.schema.dim.to_string()),
        ("metric", info.schema.metric.to_string()),
        ("elements", info.schema.element.to_string()),
        ("index", info.schema.index.to_string()),
    ];
    for (what, value) in [
        ("m", p.m),
        ("ef-construction", p.ef_construction),
        ("lists", p.lists),
        ("subvectors", p.subvectors),
        ("bits", p.bits),
        ("tables", p.tables),
    ] {
        if value != 0 {
            rows.push((what, value.to_string()));
        }
    }
    if !info.schema.model.is_empty() {
        rows.push(("model", show::name(info.schema.model.as_bytes())));
    }
    rows.extend([
        ("records", show::count(info.records)),
        ("files", show::count(info.files)),
        ("files not indexed (another dimension)", show::count(info.unindexed)),
        ("not in the index yet", show::count(info.pending)),
        ("deleted, still in the index", show::count(info.tombstones)),
        ("damaged vectors", show::count(info.damaged)),
        ("vectors", show::size((info.records + info.files).saturating_mul(u64::from(info.schema.dim) * 4))),
        ("stored index", show::size(info.index_bytes)),
        ("memory", show::size(info.memory)),
        ("next id", info.next_id.to_string()),
    ]);
    for (what, value) in rows {
        show::line(format!("  {what:38} {value}"))?;
    }
    if s.inside() && Session::unindexed(&info) {
        show::line(format!("  every search indexes anew; once and for all: vexfs collection reindex {}", s.name()))?;
    }
    if info.populating {
        show::line("  files that were there before are still being taken in")?;
    }
    s.close()
}

fn reindex(a: &Reindex) -> Done {
    let mut s = Session::open(&a.path, Intent::Change)?;
    let info = s.ask(|c| c.reindex(a.index.map(Into::into), &(&a.params).into()));
    let info = info.and_then(|i| s.settle().map(|()| i));
    if let (Ok(info), true) = (&info, a.json) {
        show::line(Value::from(to_json(info)))?;
    }
    s.close()?;
    info.map(|_| ())
}

fn drop_collection(a: &PathJson) -> Done {
    let mut s = Session::open(&a.path, Intent::Change)?;
    let done = s.ask(|c| c.drop_collection());
    let name = s.name().to_string();
    s.close()?;
    done?;
    if a.json {
        return show::line(json!({"path": name, "dropped": true}));
    }
    Ok(())
}

fn summary(i: &CollectionInfo) -> String {
    format!(
        "{} of {} dimensions, {}, {}",
        show::counted(i.records + i.files, "vector"),
        i.schema.dim,
        i.schema.metric,
        i.schema.index
    )
}

/// A collection as JSON; `schema` is what `vexfs import` makes one from.
pub fn to_json(i: &CollectionInfo) -> Map<String, Value> {
    let mut o = schema_to_json(&i.schema);
    let rest = json!({
        "inode": i.ino, "next_id": i.next_id, "records": i.records, "files": i.files, "unindexed": i.unindexed,
        "pending": i.pending, "tombstones": i.tombstones, "damaged": i.damaged, "index_bytes": i.index_bytes,
        "memory_bytes": i.memory, "change": i.change, "populating": i.populating, "catching_up": i.catching_up,
    });
    if let Value::Object(rest) = rest {
        o.extend(rest);
    }
    o
}

/// What a collection is made with.
pub fn schema_to_json(s: &Schema) -> Map<String, Value> {
    let mut o = Map::new();
    o.insert("dim".into(), s.dim.into());
    o.insert("metric".into(), s.metric.name().into());
    o.insert("element".into(), s.element.name().into());
    o.insert("index".into(), s.index.name().into());
    let p = &s.params;
    for (key, value) in [
        ("m", p.m),
        ("ef_construction", p.ef_construction),
        ("lists", p.lists),
        ("subvectors", p.subvectors),
        ("bits", p.bits),
        ("tables", p.tables),
    ] {
        if value != 0 {
            o.insert(key.into(), value.into());
        }
    }
    o.insert("seed".into(), p.seed.into());
    o.insert("model".into(), s.model.as_str().into());
    o
}

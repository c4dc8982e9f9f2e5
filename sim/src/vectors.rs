// SPDX-License-Identifier: GPL-2.0-only
//! The model of collections: records, filters, brute-force search in the canonical order of summation, and
//! both directions of the protocol. A reply is compared with what the model says it must be.

use crate::act::VecAct;
use crate::frames::{fixed, info, records, shown, to_words, Cursor};
use crate::model::{text, Known, Node, Obj, State};
use std::collections::BTreeMap;
use std::rc::Rc;
use vexfs_core::error::Error;
use vexfs_core::op::Ino;
use vexfs_core::proto::wire;

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Val {
    /// Removes the attribute (in updates).
    None,
    Str(String),
    I64(i64),
    F64(f64),
    Bool(bool),
    /// A file's extended attribute: text that may stand for a number.
    Text(Vec<u8>),
}

/// Attributes of a record.
pub type Attrs = BTreeMap<String, Val>;

/// How a filter compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Cmp {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
}

/// A filter as a tree.
#[derive(Clone, Debug)]
#[allow(missing_docs)]
pub enum Filter {
    Test(String, Cmp, Val),
    In(String, Vec<Val>),
    Exists(String),
    Not(Box<Filter>),
    And(Box<Filter>, Box<Filter>),
    Or(Box<Filter>, Box<Filter>),
}

fn literal(v: &Val) -> String {
    match v {
        Val::Str(s) => format!("\"{s}\""),
        Val::I64(x) => x.to_string(),
        Val::F64(x) => format!("{x:?}"),
        Val::Bool(b) => b.to_string(),
        Val::None | Val::Text(_) => "0".into(),
    }
}

fn compare(a: &Val, b: &Val) -> Option<std::cmp::Ordering> {
    let number = |v: &Val| match v {
        Val::I64(x) => Some(*x as f64),
        Val::F64(x) => Some(*x),
        Val::Text(t) => std::str::from_utf8(t).ok().and_then(|s| s.parse::<f64>().ok()),
        _ => None,
    };
    match (a, b) {
        (Val::Str(a), Val::Str(b)) => Some(a.as_bytes().cmp(b.as_bytes())),
        (Val::Text(a), Val::Str(b)) => Some(a.as_slice().cmp(b.as_bytes())),
        (Val::Bool(a), Val::Bool(b)) => Some(a.cmp(b)),
        (Val::Text(t), Val::Bool(b)) => match t.as_slice() {
            b"true" => Some(true.cmp(b)),
            b"false" => Some(false.cmp(b)),
            _ => None,
        },
        (_, Val::I64(_) | Val::F64(_)) => number(a)?.partial_cmp(&number(b)?),
        _ => None,
    }
}

impl Filter {
    /// In the filter language.
    pub fn text(&self) -> String {
        match self {
            Filter::Test(n, c, v) => {
                let c = match c {
                    Cmp::Eq => "=",
                    Cmp::Ne => "!=",
                    Cmp::Lt => "<",
                    Cmp::Le => "<=",
                    Cmp::Gt => ">",
                    Cmp::Ge => ">=",
                };
                format!("{n} {c} {}", literal(v))
            }
            Filter::In(n, v) => format!("{n} in ({})", v.iter().map(literal).collect::<Vec<_>>().join(", ")),
            Filter::Exists(n) => format!("exists({n})"),
            Filter::Not(f) => format!("not ({})", f.text()),
            Filter::And(a, b) => format!("({}) and ({})", a.text(), b.text()),
            Filter::Or(a, b) => format!("({}) or ({})", a.text(), b.text()),
        }
    }

    /// Whether a record with these attributes matches.
    pub fn matches(&self, attrs: &Attrs) -> bool {
        match self {
            Filter::Test(n, c, v) => attrs.get(n).and_then(|a| compare(a, v)).is_some_and(|o| match c {
                Cmp::Eq => o.is_eq(),
                Cmp::Ne => o.is_ne(),
                Cmp::Lt => o.is_lt(),
                Cmp::Le => o.is_le(),
                Cmp::Gt => o.is_gt(),
                Cmp::Ge => o.is_ge(),
            }),
            Filter::In(n, vs) => {
                attrs.get(n).is_some_and(|a| vs.iter().any(|v| compare(a, v).is_some_and(|o| o.is_eq())))
            }
            Filter::Exists(n) => attrs.contains_key(n),
            Filter::Not(f) => !f.matches(attrs),
            Filter::And(a, b) => a.matches(attrs) && b.matches(attrs),
            Filter::Or(a, b) => a.matches(attrs) || b.matches(attrs),
        }
    }
}

/// A bulk record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// f32 bits.
    pub vector: Rc<Vec<u32>>,
    /// Attributes.
    pub attrs: Attrs,
}

/// A collection.
#[derive(Clone, Debug)]
pub struct Coll {
    /// Dimension.
    pub dim: u32,
    /// Metric of the protocol.
    pub metric: u32,
    /// Index kind of the protocol.
    pub index: u32,
    /// Name of the model.
    pub model: Vec<u8>,
    /// Bulk records.
    pub records: BTreeMap<u64, Rc<Record>>,
    /// File records that the volume lists: (inode, is searched). Only in states that were read back.
    pub files: Option<Vec<(Ino, bool)>>,
    /// Files that were there before the collection may still be missing in it.
    pub populating: bool,
}

impl Coll {
    /// The same apart from the records.
    pub fn same(&self, o: &Coll) -> Result<(), String> {
        let schema = |c: &Coll| (c.dim, c.metric, c.index, c.model.clone());
        if schema(self) != schema(o) {
            return Err(format!("schema: expected {:?}, found {:?}", schema(self), schema(o)));
        }
        Ok(())
    }
}

fn lanes(terms: impl Iterator<Item = f64>) -> f64 {
    let mut s = [0f64; 8];
    for (i, t) in terms.enumerate() {
        s[i % 8] += t;
    }
    ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]))
}

fn f(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits))
}

/// The distance as the format defines it, bit for bit.
pub fn distance(metric: u32, q: &[u32], v: &[u32]) -> f64 {
    let inv = |x: &[u32]| 1.0 / lanes(x.iter().map(|a| f(*a) * f(*a))).sqrt();
    let dot = || lanes(q.iter().zip(v).map(|(a, b)| f(*a) * f(*b)));
    let d = match metric {
        wire::metric::L2 => lanes(q.iter().zip(v).map(|(a, b)| (f(*a) - f(*b)) * (f(*a) - f(*b)))),
        wire::metric::COSINE => 1.0 - (dot() * inv(q)) * inv(v),
        _ => -dot(),
    };
    d + 0.0
}

/// Whether a vector may be stored or searched for.
pub fn admit(metric: Option<u32>, v: &[u32]) -> Result<(), &'static [Error]> {
    if v.iter().any(|x| !f32::from_bits(*x).is_finite()) {
        return Err(&[Error::BadVector]);
    }
    let norm = lanes(v.iter().map(|a| f(*a) * f(*a))) as f32;
    let zero = v.iter().all(|x| f(*x) == 0.0);
    if zero {
        return if metric == Some(wire::metric::COSINE) { Err(&[Error::ZeroVector]) } else { Ok(()) };
    }
    if norm.is_normal() {
        Ok(())
    } else {
        Err(&[Error::BadVector])
    }
}

/// A file's attributes: its user xattrs.
pub fn file_attrs(n: &Node) -> Attrs {
    let mut a = Attrs::new();
    for (k, v) in &n.xattrs {
        if let Some(name) = k.strip_prefix(b"user.") {
            a.insert(String::from_utf8_lossy(name).into_owned(), Val::Text(v.clone()));
        }
    }
    a
}

/// Every record that a search may find: id, vector, attributes.
pub fn candidates(s: &State, dir: Ino) -> Vec<(u64, Rc<Vec<u32>>, Attrs)> {
    let Some(c) = s.node(dir).and_then(|n| n.coll.as_ref()) else { return Vec::new() };
    let mut out: Vec<_> = c.records.iter().map(|(id, r)| (*id, r.vector.clone(), r.attrs.clone())).collect();
    for (ino, words) in s.embedded(dir) {
        if words.len() == c.dim as usize && admit(Some(c.metric), &words).is_ok() {
            let attrs = s.node(ino).map(file_attrs).unwrap_or_default();
            out.push((wire::FILE_ID_BASE + ino, words, attrs));
        }
    }
    out
}

/// Which errors a request must give.
pub fn must(s: &State, dir: Ino, req: &VecAct) -> Result<(), &'static [Error]> {
    if matches!(req, VecAct::Sync) {
        return Ok(());
    }
    let Some(n) = s.node(dir) else { return Err(&[Error::NotFound, Error::Stale]) };
    if !n.is_dir() {
        return Err(&[Error::NotDirectory, Error::NotCollection, Error::Invalid]);
    }
    let coll = || n.coll.as_ref().ok_or(&[Error::NotCollection] as &[Error]);
    match req {
        VecAct::Create { .. } => {
            if n.coll.is_some() {
                return Err(&[Error::Exists]);
            }
            Ok(())
        }
        VecAct::Info | VecAct::Drop | VecAct::Reindex { .. } => coll().map(|_| ()),
        VecAct::Get { .. } | VecAct::Delete { .. } | VecAct::DeleteWhere { .. } | VecAct::List { .. } => {
            coll().map(|_| ())
        }
        VecAct::Update { .. } => coll().map(|_| ()),
        VecAct::Insert { vectors, ids, if_absent, .. } => {
            let c = coll()?;
            if vectors.iter().any(|v| v.len() != c.dim as usize) {
                return Err(&[Error::WrongDimension]);
            }
            for v in vectors {
                admit(Some(c.metric), v)?;
            }
            if *if_absent && ids.iter().flatten().any(|id| c.records.contains_key(id)) {
                return Err(&[Error::Exists]);
            }
            Ok(())
        }
        VecAct::Search { queries, .. } => {
            let c = coll()?;
            if queries.iter().any(|q| q.len() != c.dim as usize) {
                return Err(&[Error::WrongDimension]);
            }
            for q in queries {
                admit(Some(c.metric), q)?;
            }
            Ok(())
        }
        VecAct::Embed { words, .. } => admit(None, words),
        VecAct::Unembed { ino } | VecAct::GetEmbedding { ino } => {
            if s.node(*ino).is_some_and(|n| n.embedding.is_some()) {
                Ok(())
            } else {
                Err(&[Error::NoAttribute, Error::NotFound])
            }
        }
        VecAct::Sync | VecAct::Collections | VecAct::Stats => Ok(()),
    }
}

/// Carries out a request that succeeded.
pub fn apply(s: &mut State, dir: Ino, req: &VecAct, known: &Known, touched: &mut Vec<Obj>) {
    let when = known.when;
    let has_embedded = !s.embedded(dir).is_empty();
    let stamp = |s: &mut State, touched: &mut Vec<Obj>, ino: Ino| {
        touched.push(Obj::Node(ino));
        if let Some(n) = s.node_mut(ino) {
            n.ctime = n.ctime.hull(when);
            n.mtime = n.mtime.hull(when);
        }
    };
    match req {
        VecAct::Create { dim, metric, index, model, .. } => {
            stamp(s, touched, dir);
            if let Some(n) = s.node_mut(dir) {
                n.coll = Some(Coll {
                    dim: *dim,
                    metric: *metric,
                    index: *index,
                    model: model.clone(),
                    records: BTreeMap::new(),
                    files: None,
                    populating: has_embedded,
                });
            }
        }
        VecAct::Drop => {
            stamp(s, touched, dir);
            if let Some(c) = s.node_mut(dir).and_then(|n| n.coll.take()) {
                touched.extend(c.records.keys().map(|id| Obj::Record(dir, *id)));
            }
        }
        VecAct::Reindex { index } => {
            stamp(s, touched, dir);
            if let Some(c) = s.node_mut(dir).and_then(|n| n.coll.as_mut()) {
                c.index = *index;
            }
        }
        VecAct::Insert { ids, vectors, attrs, .. } => {
            stamp(s, touched, dir);
            let Some(c) = s.node_mut(dir).and_then(|n| n.coll.as_mut()) else { return };
            for (i, v) in vectors.iter().enumerate() {
                let id = match ids {
                    Some(ids) => ids[i],
                    None => known.first_id.unwrap_or(0) + i as u64,
                };
                let attrs = attrs.as_ref().map(|a| a[i].clone()).unwrap_or_default();
                c.records.insert(id, Rc::new(Record { vector: v.clone(), attrs }));
                touched.push(Obj::Record(dir, id));
            }
        }
        VecAct::Delete { ids } => {
            stamp(s, touched, dir);
            for id in ids {
                if *id >= wire::FILE_ID_BASE {
                    let ino = *id - wire::FILE_ID_BASE;
                    let here = s.node(dir).and_then(Node::entries).is_some_and(|e| e.values().any(|i| *i == ino));
                    if here {
                        stamp(s, touched, ino);
                        if let Some(n) = s.node_mut(ino) {
                            n.embedding = None;
                        }
                    }
                } else if let Some(c) = s.node_mut(dir).and_then(|n| n.coll.as_mut()) {
                    c.records.remove(id);
                    touched.push(Obj::Record(dir, *id));
                }
            }
        }
        VecAct::DeleteWhere { filter } => {
            stamp(s, touched, dir);
            if let Some(c) = s.node_mut(dir).and_then(|n| n.coll.as_mut()) {
                let gone: Vec<u64> =
                    c.records.iter().filter(|(_, r)| filter.matches(&r.attrs)).map(|(id, _)| *id).collect();
                for id in gone {
                    c.records.remove(&id);
                    touched.push(Obj::Record(dir, id));
                }
            }
        }
        VecAct::Update { ids, attrs, replace } => {
            stamp(s, touched, dir);
            if let Some(c) = s.node_mut(dir).and_then(|n| n.coll.as_mut()) {
                for (id, a) in ids.iter().zip(attrs) {
                    if let Some(r) = c.records.get_mut(id).map(Rc::make_mut) {
                        if *replace {
                            r.attrs = a.clone();
                        } else {
                            r.attrs.extend(a.clone());
                        }
                        r.attrs.retain(|_, v| *v != Val::None);
                        touched.push(Obj::Record(dir, *id));
                    }
                }
            }
        }
        VecAct::Embed { ino, words, .. } => {
            stamp(s, touched, *ino);
            if let Some(n) = s.node_mut(*ino) {
                n.embedding = Some(words.clone());
                n.stale = Some(false);
            }
        }
        VecAct::Unembed { ino } => {
            stamp(s, touched, *ino);
            if let Some(n) = s.node_mut(*ino) {
                n.embedding = None;
            }
        }
        _ => {}
    }
}

/// What a good reply taught.
#[derive(Default)]
pub struct Learned {
    /// First id of an insert without ids.
    pub first_id: Option<u64>,
    /// The collection has taken all its files in.
    pub populated: bool,
    /// (found, expected) of approximate searches, for the recall.
    pub recall: (u64, u64),
    /// How much of it was done cannot be told from the reply: a file may not have been taken in yet.
    pub unsure: bool,
}

/// Compares a good reply with the model.
/// `lossy`: the disk has failed to give data that it has, so vectors may be reported as damaged.
pub fn check(s: &State, dir: Ino, req: &VecAct, c: &mut Cursor, lossy: bool) -> Result<Learned, String> {
    let mut learned = Learned::default();
    let coll = s.node(dir).and_then(|n| n.coll.as_ref());
    let all = || candidates(s, dir);
    match (req, coll) {
        (VecAct::Create { .. }, _) => {
            let (i, _) = info(c)?;
            if i.ino != dir {
                return Err(format!("create answered for inode {}", i.ino));
            }
        }
        (VecAct::Info, Some(m)) => {
            let (i, read) = info(c)?;
            m.same(&read)?;
            if i.records != m.records.len() as u64 {
                return Err(format!("info says {} records, there are {}", i.records, m.records.len()));
            }
            let files = all().len() as u64 - i.records;
            let unindexed = s.embedded(dir).len() as u64 - files;
            learned.populated = !read.populating;
            if !read.populating && (i.files, i.unindexed) != (files, unindexed) {
                return Err(format!(
                    "info says {} files and {} unindexed ones, there are {files} and {unindexed}",
                    i.files, i.unindexed
                ));
            }
        }
        (VecAct::Insert { vectors, ids, .. }, Some(m)) => {
            let r = fixed!(c, InsertReply);
            if r.count != vectors.len() as u64 {
                return Err(format!("insert says {} of {} records", r.count, vectors.len()));
            }
            if ids.is_none() {
                let range = r.first_id..r.first_id + r.count;
                if m.records.keys().any(|id| range.contains(id)) {
                    return Err(format!("insert without ids took ids from {} on, which exist", r.first_id));
                }
                learned.first_id = Some(r.first_id);
            }
        }
        (VecAct::Delete { ids }, Some(m)) => {
            let r = fixed!(c, DeleteReply);
            let files = s.embedded(dir);
            let mut distinct = ids.clone();
            distinct.sort_unstable();
            distinct.dedup();
            let exists =
                |id: &&u64| m.records.contains_key(id) || files.iter().any(|(i, _)| **id == wire::FILE_ID_BASE + i);
            let done = distinct.iter().filter(exists).count() as u64;
            if r.done != done && !m.populating {
                return Err(format!("delete says {} records, there were {done}", r.done));
            }
            learned.unsure = r.done != done;
        }
        (VecAct::DeleteWhere { filter }, Some(m)) => {
            let r = fixed!(c, DeleteReply);
            let n = m.records.values().filter(|r| filter.matches(&r.attrs)).count() as u64;
            if r.done != n {
                return Err(format!("delete by filter {:?} says {} records, {n} match", filter.text(), r.done));
            }
        }
        (VecAct::Update { ids, .. }, Some(m)) => {
            let r = fixed!(c, DeleteReply);
            let n = ids.iter().filter(|id| m.records.contains_key(id)).count() as u64;
            if (r.done, r.missing) != (n, ids.len() as u64 - n) {
                return Err(format!("update says {} done, {} missing; expected {n} done", r.done, r.missing));
            }
        }
        (VecAct::Get { ids }, Some(m)) => {
            let (got, _) = records(c)?;
            let files = s.embedded(dir);
            if got.len() != ids.len() {
                return Err(format!("get of {} ids gave {} records", ids.len(), got.len()));
            }
            for (id, g) in ids.iter().zip(&got) {
                let present = g.flags & wire::record_flags::PRESENT != 0;
                let want = if *id >= wire::FILE_ID_BASE {
                    let f = files.iter().find(|(i, _)| wire::FILE_ID_BASE + i == *id);
                    f.map(|(i, v)| (v.clone(), s.node(*i).map(|n| shown(&file_attrs(n))).unwrap_or_default()))
                } else {
                    m.records.get(id).map(|r| (r.vector.clone(), r.attrs.clone()))
                };
                if m.populating && *id >= wire::FILE_ID_BASE && !present {
                    continue;
                }
                let fine = match &want {
                    None => !present,
                    Some((v, a)) => present && g.id == *id && (**v == g.vector || lossy && g.damaged) && *a == g.attrs,
                };
                if !fine {
                    return Err(format!("get {id}: expected {want:?}, found {g:?}"));
                }
            }
        }
        (VecAct::List { filter, max }, Some(m)) => {
            let (got, _) = records(c)?;
            let mut want: Vec<u64> = m
                .records
                .iter()
                .filter(|(_, r)| filter.as_ref().is_none_or(|f| f.matches(&r.attrs)))
                .map(|(id, _)| *id)
                .collect();
            let bulk: Vec<u64> = got.iter().map(|g| g.id).filter(|id| *id < wire::FILE_ID_BASE).collect();
            want.truncate(*max as usize);
            if bulk != want {
                return Err(format!("list gave {bulk:?}, expected {want:?}"));
            }
            for g in got.iter().filter(|g| g.id < wire::FILE_ID_BASE) {
                let r = &m.records[&g.id];
                if (*r.vector != g.vector && !(lossy && g.damaged)) || r.attrs != g.attrs {
                    return Err(format!("list: record {} is {g:?}, expected {r:?}", g.id));
                }
            }
        }
        (VecAct::Search { queries, k, filter, radius, exact, ef }, Some(m)) => {
            let r = fixed!(c, SearchReply);
            if r.count as usize != queries.len() {
                return Err(format!("{} queries, {} answers", queries.len(), r.count));
            }
            let mut found = all();
            found.retain(|(_, _, a)| filter.as_ref().is_none_or(|f| f.matches(a)));
            for q in queries {
                let h = fixed!(c, QueryHead);
                let mut hits = Vec::new();
                for _ in 0..h.hits {
                    let hit = fixed!(c, Hit);
                    hits.push((f64::from_bits(hit.distance), hit.id));
                }
                c.take(h.paths_len as usize)?;
                let mut want: Vec<(f64, u64)> =
                    found.iter().map(|(id, v, _)| (distance(m.metric, q, v), *id)).collect();
                want.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                if let Some(r) = radius {
                    want.retain(|(d, _)| *d <= f64::from_bits(*r));
                }
                let exact = *exact || m.index == wire::index::FLAT;
                judge(&hits, &want, *k as usize, exact, m.populating || lossy, radius.is_some(), *ef as usize)
                    .map_err(|e| {
                        format!(
                            "search of {dir} (index {}, k {k}, filter {:?}): {e}",
                            m.index,
                            filter.as_ref().map(Filter::text)
                        )
                    })?;
                if !exact {
                    let n = want.len().min(*k as usize);
                    learned.recall.1 += n as u64;
                    learned.recall.0 += want[..n].iter().filter(|w| hits.contains(w)).count() as u64;
                }
            }
        }
        (VecAct::GetEmbedding { ino }, _) => {
            let r = fixed!(c, EmbeddingReply);
            let words = to_words(c.take(r.dim as usize * 4)?);
            let n = s.node(*ino);
            if n.and_then(|n| n.embedding.as_ref()).is_none_or(|e| **e != words) || r.ino != *ino {
                return Err(format!("embedding of {ino} is {words:?}"));
            }
            let stale = r.flags & wire::record_flags::STALE != 0;
            if n.and_then(|n| n.stale).is_some_and(|s| s != stale) {
                return Err(format!("embedding of {ino}: stale is {stale}"));
            }
        }
        _ => {}
    }
    Ok(learned)
}

/// Whether the hits are right. `want`: everything that matches, nearest first.
fn judge(
    hits: &[(f64, u64)],
    want: &[(f64, u64)],
    k: usize,
    exact: bool,
    populating: bool,
    radius: bool,
    ef: usize,
) -> Result<(), String> {
    for h in hits {
        match want.iter().find(|w| w.1 == h.1) {
            None => {
                return Err(format!("record {} was found, which does not exist, match or lie within the radius", h.1))
            }
            Some(w) if w.0.to_bits() != h.0.to_bits() => {
                return Err(format!("record {} has distance {:?}, found {:?}", h.1, w.0, h.0))
            }
            _ => {}
        }
    }
    if hits.windows(2).any(|w| w[0].0.total_cmp(&w[1].0).then(w[0].1.cmp(&w[1].1)).is_ge()) {
        return Err("the results are not in order".into());
    }
    if populating {
        return Ok(());
    }
    let n = want.len().min(k);
    if exact && hits != &want[..n] {
        return Err(format!("expected {:?}, found {hits:?}", &want[..n]));
    }
    if hits.len() > n || (hits.len() < n && !radius) {
        return Err(format!("{} results, {n} are possible", hits.len()));
    }
    if ef >= 2 * want.len() && n > 0 {
        let right = want[..n].iter().filter(|w| hits.contains(w)).count();
        if right * 10 < n * 7 {
            return Err(format!("only {right} of the {n} nearest: expected {:?}, found {hits:?}", &want[..n]));
        }
    }
    Ok(())
}

/// A short name of a collection for messages.
pub fn describe(n: &Node) -> String {
    n.coll
        .as_ref()
        .map_or("no collection".into(), |c| format!("dim {} metric {} model {}", c.dim, c.metric, text(&c.model)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(x: &[f32]) -> Vec<u32> {
        x.iter().map(|f| f.to_bits()).collect()
    }

    #[test]
    fn distances() {
        assert_eq!(distance(wire::metric::L2, &v(&[1., 2., 3.]), &v(&[3., 2., 1.])), 8.0);
        assert_eq!(distance(wire::metric::IP, &v(&[1., 2., 3.]), &v(&[3., 2., 1.])), -10.0);
        let c = distance(wire::metric::COSINE, &v(&[1., 0.]), &v(&[0., 2.]));
        assert_eq!(c, 1.0);
    }

    #[test]
    fn admission() {
        assert!(admit(None, &v(&[0.0])).is_ok());
        assert!(admit(Some(wire::metric::COSINE), &v(&[0.0])).is_err());
        assert!(admit(None, &v(&[f32::NAN])).is_err());
        assert!(admit(None, &v(&[3e38, 1.0])).is_err());
        assert!(admit(None, &v(&[1e-30])).is_err());
    }

    #[test]
    fn filters() {
        let attrs: Attrs = [("n".into(), Val::I64(3)), ("s".into(), Val::Str("b".into()))].into();
        let test = |n: &str, c, v| Filter::Test(n.into(), c, v);
        assert!(test("n", Cmp::Lt, Val::F64(3.5)).matches(&attrs));
        assert!(!test("x", Cmp::Ne, Val::I64(1)).matches(&attrs));
        assert!(Filter::Not(Box::new(test("x", Cmp::Ne, Val::I64(1)))).matches(&attrs));
        assert!(test("s", Cmp::Gt, Val::Str("a".into())).matches(&attrs));
        assert!(!test("s", Cmp::Ne, Val::I64(1)).matches(&attrs), "another type never meets");
        assert_eq!(test("n", Cmp::Ge, Val::F64(2.0)).text(), "n >= 2.0");
    }

    #[test]
    fn judging() {
        let want = [(1.0, 5), (1.0, 7), (2.0, 1)];
        assert!(judge(&want[..2], &want, 2, true, false, false, 0).is_ok());
        assert!(judge(&[(1.0, 7), (1.0, 5)], &want, 2, true, false, false, 0).is_err(), "ties by id");
        assert!(judge(&want[..1], &want, 2, false, false, false, 0).is_err(), "too few");
        assert!(judge(&[(1.0, 5), (1.0, 9)], &want, 2, false, false, false, 0).is_err(), "a record that is gone");
        assert!(judge(&[(1.5, 5), (2.0, 1)], &want, 2, false, false, false, 0).is_err(), "a wrong distance");
        assert!(judge(&[(1.0, 5), (2.0, 1)], &want, 2, false, false, false, 0).is_ok(), "approximate");
        assert!(judge(&[(2.0, 1)], &want, 1, false, false, false, 9).is_err(), "not even nearly");
    }
}

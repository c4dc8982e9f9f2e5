// SPDX-License-Identifier: GPL-2.0-only
//! Frames of the protocol as the simulator writes and reads them: written apart from the core's own code, so that an
//! error there is not made twice.

use crate::act::VecAct;
use crate::vectors::{Attrs, Coll, Filter, Val};
use std::collections::BTreeMap;
use std::rc::Rc;
use vexfs_core::proto::wire;

/// Builds a frame section by section.
struct Frame(Vec<u8>);

impl Frame {
    fn new(op: u16, durable: bool) -> Frame {
        let flags = if durable { wire::request_flags::DURABLE } else { 0 };
        let head = wire::RequestHead { version: wire::VERSION, op, tag: 7, flags, ..Default::default() };
        Frame(head.bytes().to_vec())
    }

    fn add(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(wire::pad(self.0.len()), 0);
    }

    fn words(&mut self, vectors: &[Rc<Vec<u32>>]) {
        let bytes: Vec<u8> = vectors.iter().flat_map(|v| v.iter()).flat_map(|w| w.to_le_bytes()).collect();
        self.add(&bytes);
    }

    fn ids(&mut self, ids: &[u64]) {
        let bytes: Vec<u8> = ids.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add(&bytes);
    }

    fn attrs(&mut self, ends: &[u32], bytes: &[u8]) {
        let e: Vec<u8> = ends.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.add(&e);
        self.add(bytes);
    }

    fn end(mut self) -> Vec<u8> {
        let len = (self.0.len() as u32).to_le_bytes();
        self.0[..4].copy_from_slice(&len);
        self.0
    }
}

/// Attributes as the protocol encodes them.
pub fn encode_attrs(a: &Attrs) -> Vec<u8> {
    let mut out = Vec::new();
    for (name, v) in a {
        let (ty, value) = match v {
            Val::None => (wire::attr_type::NONE, Vec::new()),
            Val::Str(s) => (wire::attr_type::STRING, s.as_bytes().to_vec()),
            Val::Text(t) => (wire::attr_type::STRING, t.clone()),
            Val::I64(x) => (wire::attr_type::I64, x.to_le_bytes().to_vec()),
            Val::F64(x) => (wire::attr_type::F64, x.to_bits().to_le_bytes().to_vec()),
            Val::Bool(b) => (wire::attr_type::BOOL, vec![u8::from(*b)]),
        };
        let head = wire::AttrHead { name_len: name.len() as u8, ty, value_len: value.len() as u16 };
        out.extend_from_slice(&head.bytes());
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(&value);
    }
    out
}

fn table(attrs: &[Attrs]) -> (Vec<u32>, Vec<u8>) {
    let (mut ends, mut bytes) = (Vec::new(), Vec::new());
    for a in attrs {
        bytes.extend(encode_attrs(a));
        ends.push(bytes.len() as u32);
    }
    (ends, bytes)
}

/// Parameters with which few vectors are enough to train an index.
fn parameters(index: u32) -> wire::Schema {
    let none = wire::Schema::default();
    match index {
        wire::index::IVF => wire::Schema { lists: 3, ..none },
        wire::index::PQ => wire::Schema { bits: 4, ..none },
        wire::index::LSH => wire::Schema { tables: 3, bits: 4, ..none },
        _ => none,
    }
}

/// The request as a frame.
pub fn encode(req: &VecAct, durable: bool) -> Vec<u8> {
    let mut f = Frame::new(req.code(), durable);
    match req {
        VecAct::Create { dim, metric, index, m, ef_construction, seed, model } => {
            let s = wire::Schema {
                dim: *dim,
                metric: *metric,
                element: wire::element::F32,
                index: *index,
                m: *m,
                ef_construction: *ef_construction,
                seed: *seed,
                model_len: model.len() as u32,
                ..parameters(*index)
            };
            f.add(&s.bytes());
            f.add(model);
        }
        VecAct::Reindex { index } => f.add(&wire::Schema { index: *index, ..parameters(*index) }.bytes()),
        VecAct::Insert { ids, vectors, attrs, if_absent } => {
            let (ends, bytes) = table(attrs.as_deref().unwrap_or_default());
            let flag = |on, bit| if on { bit } else { 0 };
            let i = wire::Insert {
                count: vectors.len() as u32,
                dim: vectors.first().map_or(1, |v| v.len() as u32),
                flags: flag(ids.is_some(), wire::insert_flags::IDS)
                    | flag(attrs.is_some(), wire::insert_flags::ATTRS)
                    | flag(*if_absent, wire::insert_flags::IF_ABSENT),
                attrs_len: bytes.len() as u32,
                reserved: 0,
            };
            f.add(&i.bytes());
            if let Some(ids) = ids {
                f.ids(ids);
            }
            f.words(vectors);
            if attrs.is_some() {
                f.attrs(&ends, &bytes);
            }
        }
        VecAct::Get { ids } => {
            let flags = wire::want::VECTORS | wire::want::ATTRS;
            f.add(&wire::Get { count: ids.len() as u32, flags, reserved: 0 }.bytes());
            f.ids(ids);
        }
        VecAct::Delete { ids } => {
            f.add(&wire::Ids { count: ids.len() as u32, ..Default::default() }.bytes());
            f.ids(ids);
        }
        VecAct::DeleteWhere { filter } => {
            let t = filter.text();
            f.add(&wire::Text { len: t.len() as u32, ..Default::default() }.bytes());
            f.add(t.as_bytes());
        }
        VecAct::Update { ids, attrs, replace } => {
            let (ends, bytes) = table(attrs);
            let flags = if *replace { wire::update_flags::REPLACE } else { 0 };
            let u = wire::UpdateAttrs { count: ids.len() as u32, flags, attrs_len: bytes.len() as u32, reserved: 0 };
            f.add(&u.bytes());
            f.ids(ids);
            f.attrs(&ends, &bytes);
        }
        VecAct::Search { queries, k, filter, radius, exact, ef } => {
            let t = filter.as_ref().map(Filter::text).unwrap_or_default();
            let flag = |on, bit| if on { bit } else { 0 };
            let s = wire::Search {
                count: queries.len() as u32,
                dim: queries.first().map_or(1, |v| v.len() as u32),
                k: *k,
                flags: flag(radius.is_some(), wire::search_flags::RADIUS) | flag(*exact, wire::search_flags::EXACT),
                ef: *ef,
                nprobe: *ef,
                rerank: *ef,
                filter_len: t.len() as u32,
                radius: radius.unwrap_or(0),
                ..Default::default()
            };
            f.add(&s.bytes());
            f.words(queries);
            f.add(t.as_bytes());
        }
        VecAct::List { filter, max } => f = list_frame(0, filter.as_ref(), *max),
        VecAct::Embed { ino, name, words } => {
            let by_name = name.is_some();
            let e = wire::Embed {
                ino: if by_name { 0 } else { *ino },
                name_len: name.as_ref().map_or(0, |n| n.len() as u32),
                dim: words.len() as u32,
                ..Default::default()
            };
            f.add(&e.bytes());
            f.add(name.as_deref().unwrap_or_default());
            f.words(std::slice::from_ref(words));
        }
        VecAct::Unembed { ino } => {
            f.add(&wire::Embed { ino: *ino, flags: wire::embed_flags::REMOVE, ..Default::default() }.bytes());
        }
        VecAct::GetEmbedding { ino } => f.add(&wire::Embed { ino: *ino, ..Default::default() }.bytes()),
        VecAct::Collections => {
            let flags = wire::collections_flags::RECURSIVE;
            f.add(&wire::Collections { flags, ..Default::default() }.bytes());
        }
        VecAct::Info | VecAct::Drop | VecAct::Sync | VecAct::Stats => {}
    }
    f.end()
}

fn list_frame(cursor: u64, filter: Option<&Filter>, max: u32) -> Frame {
    let mut f = Frame::new(wire::op::LIST, false);
    let t = filter.map(Filter::text).unwrap_or_default();
    let l = wire::List {
        cursor,
        max_records: max,
        flags: wire::want::VECTORS | wire::want::ATTRS,
        filter_len: t.len() as u32,
        ..Default::default()
    };
    f.add(&l.bytes());
    f.add(t.as_bytes());
    f
}

/// The frame that asks for a page of records.
pub fn list_page(cursor: u64, max: u32) -> Vec<u8> {
    list_frame(cursor, None, max).end()
}

/// Takes a reply apart.
pub struct Cursor<'a> {
    b: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next `n` bytes, then on to a multiple of 8.
    pub fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let s = self.b.get(self.at..self.at + n).ok_or("the reply is too short")?;
        self.at = wire::pad(self.at + n);
        Ok(s)
    }
}

macro_rules! fixed {
    ($c:expr, $t:ident) => {
        wire::$t::parse($c.take(wire::$t::SIZE)?).ok_or("the reply is too short")?
    };
}
pub(crate) use fixed;

/// Status and body of a reply frame.
pub fn reply(frame: &[u8]) -> Result<(wire::ReplyHead, Cursor<'_>), String> {
    let mut c = Cursor { b: frame, at: 0 };
    let head = fixed!(c, ReplyHead);
    if head.len as usize != frame.len() || head.version != wire::VERSION || head.tag != 7 {
        return Err(format!("the reply's head is wrong: {head:?}, {} bytes", frame.len()));
    }
    Ok((head, c))
}

pub(crate) fn to_words(b: &[u8]) -> Vec<u32> {
    b.chunks_exact(4).map(|c| u32::from_le_bytes(c.try_into().unwrap_or_default())).collect()
}

fn parse_attrs(mut b: &[u8]) -> Result<Attrs, String> {
    let mut a = Attrs::new();
    while !b.is_empty() {
        let h = wire::AttrHead::parse(b).ok_or("attributes are cut off")?;
        let (n, v) = (usize::from(h.name_len), usize::from(h.value_len));
        let name = b.get(4..4 + n).ok_or("attributes are cut off")?;
        let value = b.get(4 + n..4 + n + v).ok_or("attributes are cut off")?;
        let eight = || <[u8; 8]>::try_from(value).map_err(|_| "a number's length is wrong");
        let val = match h.ty {
            wire::attr_type::STRING => Val::Str(String::from_utf8_lossy(value).into_owned()),
            wire::attr_type::I64 => Val::I64(i64::from_le_bytes(eight()?)),
            wire::attr_type::F64 => Val::F64(f64::from_bits(u64::from_le_bytes(eight()?))),
            wire::attr_type::BOOL => Val::Bool(value == [1]),
            t => return Err(format!("attribute type {t}")),
        };
        a.insert(String::from_utf8_lossy(name).into_owned(), val);
        b = &b[4 + n + v..];
    }
    Ok(a)
}

/// A record as a reply shows it.
#[derive(Debug)]
pub struct Listed {
    /// Its id.
    pub id: u64,
    /// Bits of `record_flags`.
    pub flags: u32,
    /// Vector.
    pub vector: Vec<u32>,
    /// Attributes.
    pub attrs: Attrs,
    /// Its vector cannot be read.
    pub damaged: bool,
}

/// Records and the next cursor of a reply to GET or LIST.
pub fn records(c: &mut Cursor) -> Result<(Vec<Listed>, u64), String> {
    let r = fixed!(c, RecordsReply);
    let mut out = Vec::new();
    for _ in 0..r.count {
        let h = fixed!(c, RecordHead);
        let vector = to_words(c.take(h.dim as usize * 4)?);
        let attrs = parse_attrs(c.take(h.attrs_len as usize)?)?;
        c.take(h.paths_len as usize)?;
        let damaged = h.flags & wire::record_flags::DAMAGED != 0;
        out.push(Listed { id: h.id, flags: h.flags, vector, attrs, damaged });
    }
    Ok((out, r.next))
}

/// Reads a reply to INFO into a collection without records.
pub fn info(c: &mut Cursor) -> Result<(wire::CollectionInfo, Coll), String> {
    let i = fixed!(c, CollectionInfo);
    let model = c.take(i.model_len as usize)?.to_vec();
    let coll = Coll {
        dim: i.dim,
        metric: i.metric,
        index: i.index,
        model,
        records: BTreeMap::new(),
        files: None,
        populating: i.flags & wire::info_flags::POPULATING != 0,
    };
    Ok((i, coll))
}

/// Attributes as a listing shows them (a file's are texts).
pub(crate) fn shown(a: &Attrs) -> Attrs {
    let as_text = |v: &Val| match v {
        Val::Text(t) => Val::Str(String::from_utf8_lossy(t).into_owned()),
        v => v.clone(),
    };
    a.iter().map(|(k, v)| (k.clone(), as_text(v))).collect()
}

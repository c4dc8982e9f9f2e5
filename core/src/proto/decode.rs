// SPDX-License-Identifier: GPL-2.0-only
//! Requests as views that borrow from their frame.

use super::wire::{self, op};
use super::Failure;
use crate::error::Error;
use crate::filter::attrs;
use crate::mem::{self, NoMemory};
use alloc::vec::Vec;

/// f32 bits in a frame, little-endian, aligned to nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words<'a>(&'a [u8]);

impl<'a> Words<'a> {
    /// The words in `bytes` (a rest of less than 4 bytes is ignored).
    pub const fn new(bytes: &'a [u8]) -> Words<'a> {
        Words(bytes)
    }

    /// Number of words.
    pub const fn len(&self) -> usize {
        self.0.len() / 4
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Word `i`.
    pub fn get(&self, i: usize) -> Option<u32> {
        let at = i.checked_mul(4)?;
        let b = self.0.get(at..at.checked_add(4)?)?;
        Some(u32::from_le_bytes(b.try_into().ok()?))
    }

    /// The `n` words from `i` on.
    pub fn sub(&self, i: usize, n: usize) -> Option<Words<'a>> {
        let at = i.checked_mul(4)?;
        Some(Words(self.0.get(at..at.checked_add(n.checked_mul(4)?)?)?))
    }

    /// All words.
    pub fn iter(&self) -> impl Iterator<Item = u32> + 'a {
        self.0.chunks_exact(4).filter_map(|b| Some(u32::from_le_bytes(b.try_into().ok()?)))
    }

    /// Appends all words to `v`.
    pub fn append_to(&self, v: &mut Vec<u32>) -> Result<(), NoMemory> {
        let from = v.len();
        mem::resize(v, from.checked_add(self.len()).ok_or(NoMemory)?, 0)?;
        for (d, s) in v.iter_mut().skip(from).zip(self.iter()) {
            *d = s;
        }
        Ok(())
    }

    /// The words in a vector of their own.
    pub fn to_vec(&self) -> Result<Vec<u32>, NoMemory> {
        let mut v = Vec::new();
        self.append_to(&mut v)?;
        Ok(v)
    }
}

/// Record ids in a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ids<'a>(&'a [u8]);

impl<'a> Ids<'a> {
    /// Number of ids.
    pub const fn len(&self) -> usize {
        self.0.len() / 8
    }

    /// Whether there is none.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Id `i`.
    pub fn get(&self, i: usize) -> Option<u64> {
        let at = i.checked_mul(8)?;
        let b = self.0.get(at..at.checked_add(8)?)?;
        Some(u64::from_le_bytes(b.try_into().ok()?))
    }

    /// All ids.
    pub fn iter(&self) -> impl Iterator<Item = u64> + 'a {
        self.0.chunks_exact(8).filter_map(|b| Some(u64::from_le_bytes(b.try_into().ok()?)))
    }
}

/// Vectors of one dimension, one after the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors<'a> {
    words: Words<'a>,
    dim: u32,
}

impl<'a> Vectors<'a> {
    /// Dimension of each.
    pub const fn dim(&self) -> u32 {
        self.dim
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.words.len().checked_div(self.dim as usize).unwrap_or(0)
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Vector `i`.
    pub fn get(&self, i: usize) -> Option<Words<'a>> {
        let dim = self.dim as usize;
        self.words.sub(i.checked_mul(dim)?, dim)
    }

    /// All elements of all vectors.
    pub const fn words(&self) -> Words<'a> {
        self.words
    }
}

/// Attributes of the records of a batch, encoded as [`attrs`] says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AttrBatch<'a> {
    ends: Words<'a>,
    bytes: &'a [u8],
}

impl<'a> AttrBatch<'a> {
    /// Attributes of record `i`, not validated yet; `None` if the table of ends is wrong there.
    pub fn get(&self, i: usize) -> Option<&'a [u8]> {
        let from = match i.checked_sub(1) {
            None => 0,
            Some(p) => self.ends.get(p)? as usize,
        };
        self.bytes.get(from..self.ends.get(i)? as usize)
    }

    /// Checks the attributes of every record. `removals`: values of type NONE are allowed.
    pub fn validate(&self, removals: bool) -> Result<(), Failure> {
        for i in 0..self.ends.len() {
            let blob = self
                .get(i)
                .ok_or(Failure::new(Error::Invalid, format_args!("record {i}: wrong table of attributes")).at(i))?;
            attrs::validate(blob, removals)
                .map_err(|e| Failure::new(e.error(), format_args!("record {i}: {}", e.message())).at(i))?;
        }
        Ok(())
    }
}

/// CREATE and REINDEX.
#[derive(Clone, Copy, Debug)]
pub struct Schema<'a> {
    /// Dimension, metric, index kind and parameters. Only lengths are checked; numbers without a meaning are the handler's to refuse.
    pub schema: wire::Schema,
    /// Name of the model, UTF-8; may be empty.
    pub model: &'a str,
}

/// INSERT.
#[derive(Clone, Copy, Debug)]
pub struct Insert<'a> {
    /// Number of records, at least 1.
    pub count: usize,
    /// Their ids; `None`: the collection's counter gives them.
    pub ids: Option<Ids<'a>>,
    /// Their vectors, `count` of them. The dimension may differ from the collection's.
    pub vectors: Vectors<'a>,
    /// Their attributes.
    pub attrs: Option<AttrBatch<'a>>,
    /// Refuse if one of the ids exists.
    pub if_absent: bool,
}

impl<'a> Insert<'a> {
    /// Checks ids (bulk ids only) and attributes of every record; elements are not looked at. To be called
    /// once, before the first change.
    pub fn validate(&self) -> Result<(), Failure> {
        if let Some(ids) = self.ids {
            if let Some(i) = ids.iter().position(|id| id >= wire::FILE_ID_BASE) {
                let text = format_args!("record {i}: its id is above 2^63 - 1 (those are files: use embed)");
                return Err(Failure::new(Error::Invalid, text).at(i));
            }
        }
        self.attrs.map_or(Ok(()), |a| a.validate(false))
    }

    /// Attributes of record `i` (empty if none were given).
    pub fn attrs_of(&self, i: usize) -> Result<&'a [u8], Error> {
        self.attrs.map_or(Ok(&[][..]), |a| a.get(i).ok_or(Error::Invalid))
    }
}

/// GET.
#[derive(Clone, Copy, Debug)]
pub struct Get<'a> {
    /// Which records.
    pub ids: Ids<'a>,
    /// Bits of [`wire::want`].
    pub want: u32,
}

/// UPDATE_ATTRS.
#[derive(Clone, Copy, Debug)]
pub struct UpdateAttrs<'a> {
    /// Which records.
    pub ids: Ids<'a>,
    /// Their attributes, as many as ids.
    pub attrs: AttrBatch<'a>,
    /// They replace all; else [`attrs::merge`] them in.
    pub replace: bool,
}

impl UpdateAttrs<'_> {
    /// Checks ids and attributes of every record. To be called once, before the first change.
    pub fn validate(&self) -> Result<(), Failure> {
        if let Some(i) = self.ids.iter().position(|id| id >= wire::FILE_ID_BASE) {
            let text = format_args!("record {i} is a file: its attributes are its user xattrs (setfattr)");
            return Err(Failure::new(Error::Invalid, text).at(i));
        }
        self.attrs.validate(!self.replace)
    }
}

/// SEARCH.
#[derive(Clone, Copy, Debug)]
pub struct Search<'a> {
    /// Queries, at least 1. The dimension may differ from the collection's.
    pub queries: Vectors<'a>,
    /// Most results, 1 to [`wire::K_MAX`].
    pub k: usize,
    /// HNSW: candidates; 0: the default.
    pub ef: usize,
    /// IVF: lists; 0: the default.
    pub nprobe: usize,
    /// Compressed kinds: candidates compared exactly; 0: the default.
    pub rerank: usize,
    /// f64 bits of the largest distance in reported units; not a NaN.
    pub radius: Option<u64>,
    /// Filter text, at most [`wire::FILTER_MAX`] bytes.
    pub filter: Option<&'a [u8]>,
    /// Name the files.
    pub paths: bool,
    /// Compare with every vector, whatever the index kind.
    pub exact: bool,
}

/// LIST.
#[derive(Clone, Copy, Debug)]
pub struct List<'a> {
    /// First id to look at.
    pub cursor: u64,
    /// Most records, at least 1.
    pub max_records: usize,
    /// Most bytes of the reply, at most [`wire::FRAME_MAX`].
    pub max_bytes: usize,
    /// Bits of [`wire::want`].
    pub want: u32,
    /// Filter text.
    pub filter: Option<&'a [u8]>,
}

/// A file by inode or by its name in the directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRef<'a> {
    /// By inode; it must have a name in the directory.
    Ino(u64),
    /// By name, 1 to 255 bytes.
    Name(&'a [u8]),
}

/// EMBED.
#[derive(Clone, Copy, Debug)]
pub struct Embed<'a> {
    /// The file.
    pub file: FileRef<'a>,
    /// Its new embedding; `None`: remove it.
    pub vector: Option<Words<'a>>,
}

/// COLLECTIONS.
#[derive(Clone, Copy, Debug)]
pub struct Collections {
    /// Where to go on; (0, 0) at first. What the numbers mean is the handler's.
    pub cursor: (u64, u64),
    /// Most collections in the page, at least 1.
    pub max: usize,
    /// Directories below too.
    pub recursive: bool,
}

/// A request's operation.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs)]
pub enum Body<'a> {
    Create(Schema<'a>),
    Info,
    Drop,
    Reindex(Schema<'a>),
    Insert(Insert<'a>),
    Get(Get<'a>),
    /// The ids.
    Delete(Ids<'a>),
    /// The filter text.
    DeleteWhere(&'a [u8]),
    UpdateAttrs(UpdateAttrs<'a>),
    Search(Search<'a>),
    List(List<'a>),
    Embed(Embed<'a>),
    GetEmbedding(FileRef<'a>),
    Sync,
    Collections(Collections),
    Stats,
}

/// A request.
#[derive(Clone, Copy, Debug)]
pub struct Request<'a> {
    /// Its head; replies repeat its tag.
    pub head: wire::RequestHead,
    /// Reply only when the change is durable.
    pub durable: bool,
    /// What to do.
    pub body: Body<'a>,
}

fn invalid(args: core::fmt::Arguments<'_>) -> Failure {
    Failure::new(Error::Invalid, args)
}

/// Takes a frame apart, section by section.
struct Cursor<'a> {
    frame: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    /// The next `n` bytes; then on to a multiple of 8 over zeros.
    fn section(&mut self, n: usize) -> Result<&'a [u8], Failure> {
        let short = || invalid(format_args!("the frame is shorter than its operation needs"));
        let end = self.at.checked_add(n).ok_or_else(short)?;
        let s = self.frame.get(self.at..end).ok_or_else(short)?;
        let next = wire::pad(end);
        let fill = self.frame.get(end..next).ok_or_else(short)?;
        if fill.iter().any(|b| *b != 0) {
            return Err(invalid(format_args!("padding in the frame is not zero")));
        }
        self.at = next;
        Ok(s)
    }

    /// The next `count * each` bytes.
    fn array(&mut self, count: usize, each: usize) -> Result<&'a [u8], Failure> {
        // An overflow is longer than any frame.
        self.section(count.saturating_mul(each))
    }

    fn end(&self) -> Result<(), Failure> {
        if self.at == self.frame.len() {
            Ok(())
        } else {
            Err(invalid(format_args!("the frame is longer than its operation needs")))
        }
    }
}

macro_rules! fixed {
    ($c:expr, $t:ident) => {{
        let b = $c.section(wire::$t::SIZE)?;
        wire::$t::parse(b).ok_or(Failure::from(Error::Invalid))?
    }};
}

fn zero(ok: bool) -> Result<(), Failure> {
    if ok {
        Ok(())
    } else {
        Err(invalid(format_args!("a reserved field is not zero, or a flag is not known")))
    }
}

fn at_least_one(count: u32, what: &str) -> Result<usize, Failure> {
    if count == 0 {
        return Err(invalid(format_args!("{what}: there is none in the request")));
    }
    Ok(count as usize)
}

fn dimension(dim: u32) -> Result<usize, Failure> {
    if dim == 0 || dim > wire::DIM_MAX {
        return Err(invalid(format_args!("dimension {dim} is not in 1 to {}", wire::DIM_MAX)));
    }
    Ok(dim as usize)
}

fn filter_text<'a>(c: &mut Cursor<'a>, len: u32) -> Result<Option<&'a [u8]>, Failure> {
    if len > wire::FILTER_MAX {
        let text = format_args!("the filter has {len} bytes, at most {} are allowed", wire::FILTER_MAX);
        return Err(Failure::new(Error::TooBig, text));
    }
    let text = c.section(len as usize)?;
    Ok(if len == 0 { None } else { Some(text) })
}

fn attr_batch<'a>(c: &mut Cursor<'a>, count: usize, attrs_len: u32) -> Result<AttrBatch<'a>, Failure> {
    let ends = Words(c.array(count, 4)?);
    let bytes = c.section(attrs_len as usize)?;
    let last = count.checked_sub(1).and_then(|i| ends.get(i));
    if last != Some(attrs_len) {
        return Err(invalid(format_args!("the table of attributes does not end with the attributes")));
    }
    Ok(AttrBatch { ends, bytes })
}

fn schema<'a>(c: &mut Cursor<'a>) -> Result<Schema<'a>, Failure> {
    let s = fixed!(c, Schema);
    zero(s.reserved == 0)?;
    if s.model_len > wire::MODEL_MAX {
        let text = format_args!("the model name has {} bytes, at most {} are allowed", s.model_len, wire::MODEL_MAX);
        return Err(Failure::new(Error::TooBig, text));
    }
    let model = core::str::from_utf8(c.section(s.model_len as usize)?)
        .map_err(|_| invalid(format_args!("the model name is not UTF-8")))?;
    Ok(Schema { schema: s, model })
}

fn insert<'a>(c: &mut Cursor<'a>) -> Result<Insert<'a>, Failure> {
    use wire::insert_flags as f;
    let b = fixed!(c, Insert);
    let with_attrs = b.flags & f::ATTRS != 0;
    zero(b.flags & !f::ALL == 0 && b.reserved == 0 && (with_attrs || b.attrs_len == 0))?;
    let count = at_least_one(b.count, "records")?;
    let dim = dimension(b.dim)?;
    let ids = if b.flags & f::IDS != 0 { Some(Ids(c.array(count, 8)?)) } else { None };
    let each = dim.saturating_mul(4);
    let vectors = Vectors { words: Words(c.array(count, each)?), dim: b.dim };
    let attrs = if with_attrs { Some(attr_batch(c, count, b.attrs_len)?) } else { None };
    Ok(Insert { count, ids, vectors, attrs, if_absent: b.flags & f::IF_ABSENT != 0 })
}

fn search<'a>(c: &mut Cursor<'a>) -> Result<Search<'a>, Failure> {
    use wire::search_flags as f;
    let b = fixed!(c, Search);
    zero(b.flags & !f::ALL == 0 && b.reserved == 0)?;
    let count = at_least_one(b.count, "queries")?;
    if b.count > wire::QUERIES_MAX {
        let text = format_args!("{count} queries at once, at most {} are allowed", wire::QUERIES_MAX);
        return Err(Failure::new(Error::TooBig, text));
    }
    let dim = dimension(b.dim)?;
    if b.k == 0 || b.k > wire::K_MAX {
        return Err(invalid(format_args!("k is {}, it has to be in 1 to {}", b.k, wire::K_MAX)));
    }
    let radius = if b.flags & f::RADIUS != 0 { Some(b.radius) } else { None };
    // All exponent bits and any of the mantissa.
    if b.radius & !(1 << 63) > 0x7ff0_0000_0000_0000 || (radius.is_none() && b.radius != 0) {
        return Err(invalid(format_args!("the radius is not a number")));
    }
    let each = dim.saturating_mul(4);
    let queries = Vectors { words: Words(c.array(count, each)?), dim: b.dim };
    let filter = filter_text(c, b.filter_len)?;
    Ok(Search {
        queries,
        k: b.k as usize,
        ef: b.ef as usize,
        nprobe: b.nprobe as usize,
        rerank: b.rerank as usize,
        radius,
        filter,
        paths: b.flags & wire::want::PATHS != 0,
        exact: b.flags & f::EXACT != 0,
    })
}

fn embed<'a>(c: &mut Cursor<'a>, get: bool) -> Result<Embed<'a>, Failure> {
    let b = fixed!(c, Embed);
    let remove = b.flags & wire::embed_flags::REMOVE != 0;
    zero(b.flags & !wire::embed_flags::ALL == 0 && b.reserved == 0 && b.reserved2 == 0 && !(get && remove))?;
    if b.name_len > wire::NAME_MAX {
        return Err(Error::NameTooLong.into());
    }
    let name = c.section(b.name_len as usize)?;
    let file = match (b.ino, name.is_empty()) {
        (0, false) => FileRef::Name(name),
        (ino, true) if ino != 0 => FileRef::Ino(ino),
        _ => return Err(invalid(format_args!("a file is named either by its inode or by its name"))),
    };
    let vector = if get || remove {
        zero(b.dim == 0)?;
        None
    } else {
        Some(Words(c.array(dimension(b.dim)?, 4)?))
    };
    Ok(Embed { file, vector })
}

/// Takes a request apart. Costs the same however many records are in it; see [`Insert::validate`] and
/// [`UpdateAttrs::validate`] for what is checked later, once. The failure goes to the caller with [`super::reply_failure`].
pub fn decode(frame: &[u8]) -> Result<Request<'_>, Failure> {
    let mut c = Cursor { frame, at: 0 };
    let head = fixed!(c, RequestHead);
    if frame.len() > wire::FRAME_MAX || head.len as usize != frame.len() {
        return Err(invalid(format_args!("the frame says {} bytes but has {}", head.len, frame.len())));
    }
    if head.version != wire::VERSION {
        let text = format_args!("protocol version {} is not known, this volume speaks {}", head.version, wire::VERSION);
        return Err(Failure::new(Error::NotSupported, text));
    }
    zero(head.reserved == 0 && head.reserved2 == 0 && head.flags & !wire::request_flags::ALL == 0)?;
    let body = match head.op {
        op::CREATE => Body::Create(schema(&mut c)?),
        op::INFO => Body::Info,
        op::DROP => Body::Drop,
        op::REINDEX => Body::Reindex(schema(&mut c)?),
        op::INSERT => Body::Insert(insert(&mut c)?),
        op::GET => {
            let b = fixed!(c, Get);
            zero(b.flags & !wire::want::ALL == 0 && b.reserved == 0)?;
            let count = at_least_one(b.count, "ids")?;
            Body::Get(Get { ids: Ids(c.array(count, 8)?), want: b.flags })
        }
        op::DELETE => {
            let b = fixed!(c, Ids);
            zero(b.flags == 0 && b.reserved == 0)?;
            let count = at_least_one(b.count, "ids")?;
            Body::Delete(Ids(c.array(count, 8)?))
        }
        op::DELETE_WHERE => {
            let b = fixed!(c, Text);
            zero(b.flags == 0 && b.reserved == 0)?;
            let text = filter_text(&mut c, b.len)?;
            Body::DeleteWhere(text.ok_or(invalid(format_args!("delete by filter needs a filter")))?)
        }
        op::UPDATE_ATTRS => {
            let b = fixed!(c, UpdateAttrs);
            zero(b.flags & !wire::update_flags::ALL == 0 && b.reserved == 0)?;
            let count = at_least_one(b.count, "records")?;
            let ids = Ids(c.array(count, 8)?);
            let attrs = attr_batch(&mut c, count, b.attrs_len)?;
            Body::UpdateAttrs(UpdateAttrs { ids, attrs, replace: b.flags & wire::update_flags::REPLACE != 0 })
        }
        op::SEARCH => Body::Search(search(&mut c)?),
        op::LIST => {
            let b = fixed!(c, List);
            zero(b.flags & !wire::want::ALL == 0 && b.reserved == 0)?;
            let or = |n: u32, all: usize| if n == 0 { all } else { (n as usize).min(all) };
            Body::List(List {
                cursor: b.cursor,
                max_records: or(b.max_records, wire::FRAME_MAX),
                max_bytes: or(b.max_bytes, wire::FRAME_MAX),
                want: b.flags,
                filter: filter_text(&mut c, b.filter_len)?,
            })
        }
        op::EMBED => Body::Embed(embed(&mut c, false)?),
        op::GET_EMBEDDING => Body::GetEmbedding(embed(&mut c, true)?.file),
        op::SYNC => Body::Sync,
        op::COLLECTIONS => {
            let b = fixed!(c, Collections);
            zero(b.flags & !wire::collections_flags::ALL == 0 && b.reserved == 0)?;
            let max = if b.max == 0 { 4096 } else { b.max as usize };
            let recursive = b.flags & wire::collections_flags::RECURSIVE != 0;
            Body::Collections(Collections { cursor: (b.cursor, b.cursor2), max, recursive })
        }
        op::STATS => Body::Stats,
        n => return Err(Failure::new(Error::NotSupported, format_args!("operation {n} is not known"))),
    };
    c.end()?;
    Ok(Request { head, durable: head.flags & wire::request_flags::DURABLE != 0, body })
}

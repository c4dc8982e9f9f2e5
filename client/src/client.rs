// SPDX-License-Identifier: MIT OR Apache-2.0
//! Requests and their replies, typed.

use crate::attrs::{self, Attrs};
use crate::frame::{fixed, take_paths, Reply, Request};
use crate::types::*;
use crate::wire::{self, op};
use crate::{ControlFile, Error, Transport};
use std::io;
use std::path::Path;

/// A session with a directory of a volume. See the [crate].
#[derive(Debug)]
pub struct Client<T = ControlFile> {
    transport: T,
    tag: u64,
}

impl Client {
    /// Opens the control file of a directory on a mounted volume.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<Client> {
        Ok(Client::new(ControlFile::open(dir)?))
    }
}

fn len32(n: usize, what: &str) -> Result<u32, Error> {
    u32::try_from(n).map_err(|_| Error::request(format!("{what}: {n} are too many for one request")))
}

/// Number of vectors in `words` elements.
fn vectors(dim: u32, elements: usize, what: &str) -> Result<usize, Error> {
    if dim == 0 || elements % dim as usize != 0 {
        return Err(Error::request(format!(
            "{what}: {elements} elements are not a whole number of vectors of dimension {dim}"
        )));
    }
    Ok(elements / dim as usize)
}

fn one_each(given: usize, count: usize, what: &str) -> Result<(), Error> {
    if given != count {
        return Err(Error::request(format!("{given} {what} for {count} records")));
    }
    Ok(())
}

fn filter_len(filter: Option<&str>) -> Result<u32, Error> {
    let n = filter.map_or(0, str::len);
    if n > wire::FILTER_MAX as usize {
        return Err(Error::request(format!("the filter has {n} bytes, at most {} are allowed", wire::FILTER_MAX)));
    }
    Ok(n as u32)
}

/// The encoded attributes of all records, and where each record's end.
fn attr_batch(attrs: &[Attrs]) -> Result<(Vec<u32>, Vec<u8>), Error> {
    let mut bytes = Vec::new();
    let mut ends = Vec::with_capacity(attrs.len());
    for (i, a) in attrs.iter().enumerate() {
        attrs::encode(a, &mut bytes).map_err(|e| Error::request(format!("record {i} of the request: {e}")))?;
        ends.push(len32(bytes.len(), "attributes")?);
    }
    Ok((ends, bytes))
}

fn wire_schema(
    dim: u32,
    metric: u32,
    element: u32,
    index: u32,
    p: &IndexParams,
    model: &str,
) -> Result<wire::Schema, Error> {
    if model.len() > wire::MODEL_MAX as usize {
        return Err(Error::request(format!(
            "the model name has {} bytes, at most {} are allowed",
            model.len(),
            wire::MODEL_MAX
        )));
    }
    Ok(wire::Schema {
        dim,
        metric,
        element,
        index,
        m: p.m,
        ef_construction: p.ef_construction,
        lists: p.lists,
        subvectors: p.subvectors,
        bits: p.bits,
        tables: p.tables,
        seed: p.seed,
        model_len: model.len() as u32,
        reserved: 0,
    })
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    String::from_utf8(bytes.to_vec()).map_err(|_| Error::Protocol("a model name is not UTF-8"))
}

fn collection(i: &wire::CollectionInfo, model: String) -> Result<CollectionInfo, Error> {
    let unknown = Error::Protocol("a collection has a metric, element type or index kind that is not known");
    let (Some(metric), Some(element), Some(index)) =
        (Metric::from_code(i.metric), Element::from_code(i.element), IndexKind::from_code(i.index))
    else {
        return Err(unknown);
    };
    let params = IndexParams {
        m: i.m,
        ef_construction: i.ef_construction,
        lists: i.lists,
        subvectors: i.subvectors,
        bits: i.bits,
        tables: i.tables,
        seed: i.seed,
    };
    Ok(CollectionInfo {
        schema: Schema { dim: i.dim, metric, element, index, params, model },
        ino: i.ino,
        next_id: i.next_id,
        records: i.records,
        files: i.files,
        unindexed: i.unindexed,
        pending: i.pending,
        tombstones: i.tombstones,
        index_bytes: i.index_bytes,
        damaged: i.damaged,
        memory: i.memory,
        change: i.change,
        populating: i.flags & wire::info_flags::POPULATING != 0,
        catching_up: i.flags & wire::info_flags::CATCHING_UP != 0,
    })
}

fn read_info(r: &mut Reply<'_>) -> Result<CollectionInfo, Error> {
    let i = fixed!(r, CollectionInfo);
    let model = text(r.section(i.model_len as usize)?)?;
    collection(&i, model)
}

fn read_changed(r: &mut Reply<'_>) -> Result<Changed, Error> {
    let d = fixed!(r, DeleteReply);
    Ok(Changed { done: d.done, missing: d.missing })
}

fn read_records(r: &mut Reply<'_>) -> Result<Records, Error> {
    use wire::record_flags as f;
    let b = fixed!(r, RecordsReply);
    let mut records = Vec::with_capacity(r.capacity(b.count, wire::RecordHead::SIZE));
    for _ in 0..b.count {
        let h = fixed!(r, RecordHead);
        let vector = r.f32s(h.dim as usize)?;
        let attrs = attrs::decode(r.section(h.attrs_len as usize)?)?;
        let paths = take_paths(&mut r.section(h.paths_len as usize)?, h.paths)?;
        records.push(Record {
            id: h.id,
            present: h.flags & f::PRESENT != 0,
            stale: h.flags & f::STALE != 0,
            unindexed: h.flags & f::UNINDEXED != 0,
            damaged: h.flags & f::DAMAGED != 0,
            vector,
            attrs,
            paths,
        });
    }
    let next = (b.next != wire::LIST_END).then_some(b.next);
    Ok(Records { records, dim: b.dim, next, change: b.change })
}

fn read_found(r: &mut Reply<'_>) -> Result<Found, Error> {
    let b = fixed!(r, SearchReply);
    let mut queries = Vec::with_capacity(r.capacity(b.count, wire::QueryHead::SIZE));
    for _ in 0..b.count {
        let q = fixed!(r, QueryHead);
        let mut raw = Vec::with_capacity(r.capacity(q.hits, wire::Hit::SIZE));
        for _ in 0..q.hits {
            raw.push(fixed!(r, Hit));
        }
        let mut names = r.section(q.paths_len as usize)?;
        let hit = |h: wire::Hit| {
            let paths = take_paths(&mut names, h.paths)?;
            Ok(Hit { id: h.id, distance: f64::from_bits(h.distance), paths })
        };
        let hits = raw.into_iter().map(hit).collect::<Result<_, Error>>()?;
        queries.push(QueryResult { hits, evaluations: q.evaluations, hops: q.hops });
    }
    Ok(Found { queries, evaluations: b.evaluations, hops: b.hops, reads: b.reads })
}

impl<T: Transport> Client<T> {
    /// A session over another transport.
    pub fn new(transport: T) -> Client<T> {
        Client { transport, tag: 0 }
    }

    /// The transport.
    pub fn into_transport(self) -> T {
        self.transport
    }

    fn request(&mut self, op: u16, durable: bool) -> Request {
        self.tag += 1;
        Request::new(op, self.tag, if durable { wire::request_flags::DURABLE } else { 0 })
    }

    fn call<R>(
        &mut self,
        op: u16,
        q: Request,
        read: impl FnOnce(&mut Reply<'_>) -> Result<R, Error>,
    ) -> Result<R, Error> {
        let frame = self.transport.call(q.finish()?)?;
        let mut reply = Reply::new(&frame, op, self.tag)?;
        let result = read(&mut reply)?;
        reply.end()?;
        Ok(result)
    }

    /// Makes the directory a collection. Durable when this returns.
    pub fn create(&mut self, s: &Schema) -> Result<CollectionInfo, Error> {
        let w = wire_schema(s.dim, s.metric.code(), s.element.code(), s.index.code(), &s.params, &s.model)?;
        let mut q = self.request(op::CREATE, true);
        q.section(&w.bytes());
        q.section(s.model.as_bytes());
        self.call(op::CREATE, q, read_info)
    }

    /// Describes the collection.
    pub fn info(&mut self) -> Result<CollectionInfo, Error> {
        let q = self.request(op::INFO, false);
        self.call(op::INFO, q, read_info)
    }

    /// The directory stops being a collection: its bulk records go, its files and their embeddings stay.
    pub fn drop_collection(&mut self) -> Result<(), Error> {
        let q = self.request(op::DROP, true);
        self.call(op::DROP, q, |_| Ok(()))
    }

    /// Changes index kind and parameters; `None` and 0 keep what is. Searches go on meanwhile.
    pub fn reindex(&mut self, index: Option<IndexKind>, params: &IndexParams) -> Result<CollectionInfo, Error> {
        let w = wire_schema(0, 0, 0, index.map_or(0, IndexKind::code), params, "")?;
        let mut q = self.request(op::REINDEX, true);
        q.section(&w.bytes());
        self.call(op::REINDEX, q, read_info)
    }

    /// Inserts or replaces records. All of them have to fit one frame, see [`Client::max_records`].
    pub fn insert(&mut self, i: &Insert<'_>) -> Result<Inserted, Error> {
        use wire::insert_flags as f;
        let count = vectors(i.dim, i.vectors.len(), "insert")?;
        let mut flags = if i.if_absent { f::IF_ABSENT } else { 0 };
        if let Some(ids) = i.ids {
            one_each(ids.len(), count, "ids")?;
            flags |= f::IDS;
        }
        let batch = match i.attrs {
            Some(a) => {
                one_each(a.len(), count, "sets of attributes")?;
                flags |= f::ATTRS;
                Some(attr_batch(a)?)
            }
            None => None,
        };
        let attrs_len = len32(batch.as_ref().map_or(0, |b| b.1.len()), "bytes of attributes")?;
        let body = wire::Insert { count: len32(count, "records")?, dim: i.dim, flags, attrs_len, reserved: 0 };
        let mut q = self.request(op::INSERT, i.durable);
        q.section(&body.bytes());
        q.u64s(i.ids.unwrap_or_default());
        q.f32s(i.vectors);
        if let Some((ends, bytes)) = batch {
            q.u32s(&ends);
            q.section(&bytes);
        }
        self.call(op::INSERT, q, |r| {
            let b = fixed!(r, InsertReply);
            Ok(Inserted { count: b.count, first_id: b.first_id })
        })
    }

    /// How many records without attributes one insert can carry.
    pub fn max_records(dim: u32) -> usize {
        (wire::FRAME_MAX - 128) / (dim as usize * 4 + 8)
    }

    /// Records by id, in the order asked; those that do not exist are not `present`.
    pub fn get(&mut self, ids: &[u64], want: Want) -> Result<Records, Error> {
        let body = wire::Get { count: len32(ids.len(), "ids")?, flags: want.bits(), reserved: 0 };
        let mut q = self.request(op::GET, false);
        q.section(&body.bytes());
        q.u64s(ids);
        self.call(op::GET, q, read_records)
    }

    /// Deletes records; of a file, its embedding.
    pub fn delete(&mut self, ids: &[u64], durable: bool) -> Result<Changed, Error> {
        let body = wire::Ids { count: len32(ids.len(), "ids")?, flags: 0, reserved: 0 };
        let mut q = self.request(op::DELETE, durable);
        q.section(&body.bytes());
        q.u64s(ids);
        self.call(op::DELETE, q, read_changed)
    }

    /// Deletes the bulk records that match a filter.
    pub fn delete_where(&mut self, filter: &str, durable: bool) -> Result<Changed, Error> {
        let body = wire::Text { len: filter_len(Some(filter))?, flags: 0, reserved: 0 };
        let mut q = self.request(op::DELETE_WHERE, durable);
        q.section(&body.bytes());
        q.section(filter.as_bytes());
        self.call(op::DELETE_WHERE, q, read_changed)
    }

    /// Changes attributes of bulk records: `replace` all of a record's by those given, or merge them in.
    pub fn update_attrs(
        &mut self,
        ids: &[u64],
        attrs: &[Attrs],
        replace: bool,
        durable: bool,
    ) -> Result<Changed, Error> {
        one_each(attrs.len(), ids.len(), "sets of attributes")?;
        let (ends, bytes) = attr_batch(attrs)?;
        let body = wire::UpdateAttrs {
            count: len32(ids.len(), "ids")?,
            flags: if replace { wire::update_flags::REPLACE } else { 0 },
            attrs_len: len32(bytes.len(), "bytes of attributes")?,
            reserved: 0,
        };
        let mut q = self.request(op::UPDATE_ATTRS, durable);
        q.section(&body.bytes());
        q.u64s(ids);
        q.u32s(&ends);
        q.section(&bytes);
        self.call(op::UPDATE_ATTRS, q, read_changed)
    }

    /// The nearest records of each query.
    pub fn search(&mut self, s: &Search<'_>) -> Result<Found, Error> {
        use wire::search_flags as f;
        vectors(s.dim, s.queries.len(), "search")?;
        let mut flags = if s.paths { wire::want::PATHS } else { 0 };
        flags |= if s.exact { f::EXACT } else { 0 } | if s.radius.is_some() { f::RADIUS } else { 0 };
        let filter = s.filter.unwrap_or_default();
        let filter_len = filter_len(s.filter)?;
        // Neither too many queries for a request nor, at 24 bytes a result, too many results for a reply.
        let per_reply = (wire::FRAME_MAX / 2) / (24 * (s.k.max(1) as usize + 1));
        let per_request = (wire::FRAME_MAX / 2) / (s.dim as usize * 4);
        let at_once = per_reply.min(per_request).clamp(1, wire::QUERIES_MAX as usize);
        let mut all = Found::default();
        // An empty search is sent too: the volume refuses it in its own words.
        let parts = s.queries.chunks(at_once * s.dim as usize);
        let empty: &[&[f32]] = if s.queries.is_empty() { &[&[]] } else { &[] };
        for part in parts.chain(empty.iter().copied()) {
            let body = wire::Search {
                count: (part.len() / s.dim as usize) as u32,
                dim: s.dim,
                k: s.k,
                flags,
                ef: s.ef,
                nprobe: s.nprobe,
                rerank: s.rerank,
                filter_len,
                radius: s.radius.map_or(0, f64::to_bits),
                reserved: 0,
            };
            let mut q = self.request(op::SEARCH, false);
            q.section(&body.bytes());
            q.f32s(part);
            q.section(filter.as_bytes());
            let found = self.call(op::SEARCH, q, read_found)?;
            if found.queries.len() * s.dim as usize != part.len() {
                return Err(Error::Protocol("it answers another number of queries"));
            }
            all.evaluations += found.evaluations;
            all.hops += found.hops;
            all.reads += found.reads;
            all.queries.extend(found.queries);
        }
        Ok(all)
    }

    /// A page of records in order of their ids.
    pub fn list(&mut self, l: &List<'_>) -> Result<Records, Error> {
        let body = wire::List {
            cursor: l.cursor,
            max_records: l.max_records,
            max_bytes: l.max_bytes,
            flags: l.want.bits(),
            filter_len: filter_len(l.filter)?,
            reserved: 0,
        };
        let mut q = self.request(op::LIST, false);
        q.section(&body.bytes());
        q.section(l.filter.unwrap_or_default().as_bytes());
        self.call(op::LIST, q, read_records)
    }

    fn embed_request(
        &mut self,
        op: u16,
        file: FileRef<'_>,
        vector: &[f32],
        remove: bool,
        durable: bool,
    ) -> Result<Request, Error> {
        let (ino, name) = match file {
            FileRef::Ino(ino) => (ino, &[][..]),
            FileRef::Name(name) => (0, name),
        };
        let body = wire::Embed {
            ino,
            name_len: len32(name.len(), "bytes of a name")?,
            dim: len32(vector.len(), "elements")?,
            flags: if remove { wire::embed_flags::REMOVE } else { 0 },
            reserved: 0,
            reserved2: 0,
        };
        let mut q = self.request(op, durable);
        q.section(&body.bytes());
        q.section(name);
        q.f32s(vector);
        Ok(q)
    }

    /// Gives a file of the directory its embedding, in place of one that it may have. The directory need not be a collection.
    pub fn embed(&mut self, file: FileRef<'_>, vector: &[f32], durable: bool) -> Result<(), Error> {
        let q = self.embed_request(op::EMBED, file, vector, false, durable)?;
        self.call(op::EMBED, q, |_| Ok(()))
    }

    /// Takes a file's embedding away.
    pub fn remove_embedding(&mut self, file: FileRef<'_>, durable: bool) -> Result<(), Error> {
        let q = self.embed_request(op::EMBED, file, &[], true, durable)?;
        self.call(op::EMBED, q, |_| Ok(()))
    }

    /// A file's embedding.
    pub fn embedding(&mut self, file: FileRef<'_>) -> Result<Embedding, Error> {
        let q = self.embed_request(op::GET_EMBEDDING, file, &[], false, false)?;
        self.call(op::GET_EMBEDDING, q, |r| {
            let b = fixed!(r, EmbeddingReply);
            let stale = b.flags & wire::record_flags::STALE != 0;
            Ok(Embedding { ino: b.ino, vector: r.f32s(b.dim as usize)?, stale })
        })
    }

    /// Makes durable everything on the volume that was acknowledged before.
    pub fn sync(&mut self) -> Result<(), Error> {
        let q = self.request(op::SYNC, false);
        self.call(op::SYNC, q, |_| Ok(()))
    }

    /// The collections in the directory (itself, with an empty path, and its children), or everywhere below it.
    pub fn collections(&mut self, recursive: bool) -> Result<Vec<(Vec<u8>, CollectionInfo)>, Error> {
        let mut all = Vec::new();
        let mut cursor = (0, 0);
        loop {
            let body = wire::Collections {
                cursor: cursor.0,
                cursor2: cursor.1,
                max: 0,
                flags: if recursive { wire::collections_flags::RECURSIVE } else { 0 },
                reserved: 0,
            };
            let mut q = self.request(op::COLLECTIONS, false);
            q.section(&body.bytes());
            let next = self.call(op::COLLECTIONS, q, |r| {
                let b = fixed!(r, CollectionsReply);
                for _ in 0..b.count {
                    let i = fixed!(r, CollectionInfo);
                    let len = r.section(8)?;
                    let path_len = u32::from_le_bytes([len[0], len[1], len[2], len[3]]) as usize;
                    let model = text(r.section(i.model_len as usize)?)?;
                    let path = r.section(path_len)?.to_vec();
                    all.push((path, collection(&i, model)?));
                }
                Ok((b.more != 0).then_some((b.cursor, b.cursor2)))
            })?;
            match next {
                Some(next) if next != cursor => cursor = next,
                Some(_) => return Err(Error::Protocol("the list of collections does not go on")),
                None => return Ok(all),
            }
        }
    }

    /// Figures of the volume.
    pub fn stats(&mut self) -> Result<VolumeStats, Error> {
        let q = self.request(op::STATS, false);
        self.call(op::STATS, q, |r| {
            let s = fixed!(r, StatsReply);
            let mut uuid = [0; 16];
            uuid[..8].copy_from_slice(&s.uuid_lo.to_le_bytes());
            uuid[8..].copy_from_slice(&s.uuid_hi.to_le_bytes());
            Ok(VolumeStats {
                uuid,
                block_size: s.block_size,
                read_only: s.read_only != 0,
                blocks: s.blocks,
                free: s.free,
                available: s.available,
                inodes: s.inodes,
                generation: s.generation,
            })
        })
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! What the client encodes, the core decodes to the same, and the other way round; over a function call and over a
//! file that is written and read in pieces.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use vexfs_client::{
    AttrValue, Attrs, Changed, Client, ControlFile, Error, FileRef, IndexKind, IndexParams, Insert, Inserted, List,
    Metric, Schema, Search, Transport, Want,
};
use vexfs_core::filter::{attrs, Encoded, Filter};
use vexfs_core::proto::{self, wire, Body, Failure};

type Rows = BTreeMap<u64, (Vec<u32>, Vec<u8>)>;

/// A collection in memory that speaks the core's side of the protocol.
#[derive(Default)]
struct Server {
    schema: wire::Schema,
    model: String,
    rows: Rows,
    next_id: u64,
    embeddings: BTreeMap<Vec<u8>, Vec<u32>>,
    log: Vec<(u16, bool)>,
}

impl Server {
    fn info(&self) -> wire::CollectionInfo {
        let s = &self.schema;
        wire::CollectionInfo {
            dim: s.dim,
            metric: s.metric,
            element: s.element,
            index: s.index,
            m: s.m,
            ef_construction: s.ef_construction,
            seed: s.seed,
            ino: 42,
            next_id: self.next_id,
            records: self.rows.len() as u64,
            damaged: 3,
            memory: 4,
            flags: wire::info_flags::CATCHING_UP,
            ..Default::default()
        }
    }

    fn filter(text: Option<&[u8]>) -> Result<Filter, Failure> {
        Ok(Filter::parse(text.unwrap_or(b"not exists(`no such`)"))?)
    }

    fn answer(&mut self, frame: &[u8]) -> Result<Vec<u8>, Failure> {
        let r = proto::decode(frame)?;
        self.log.push((r.head.op, r.durable));
        let h = &r.head;
        match r.body {
            Body::Create(s) => {
                self.schema = s.schema;
                self.model = s.model.to_string();
                proto::reply_info(h, &self.info(), self.model.as_bytes())
            }
            Body::Reindex(s) => {
                self.schema.index = s.schema.index;
                proto::reply_info(h, &self.info(), self.model.as_bytes())
            }
            Body::Info => proto::reply_info(h, &self.info(), self.model.as_bytes()),
            Body::Drop | Body::Sync => proto::reply_done(h),
            Body::Insert(i) => {
                i.validate()?;
                let first = i.ids.map_or(self.next_id, |ids| ids.get(0).unwrap());
                for n in 0..i.count {
                    let id = i.ids.map_or(first + n as u64, |ids| ids.get(n).unwrap());
                    if i.if_absent && self.rows.contains_key(&id) {
                        return Err(Failure::new(vexfs_core::Error::Exists, format_args!("record {id} exists")).at(n));
                    }
                    let row = (i.vectors.get(n).unwrap().to_vec()?, i.attrs_of(n)?.to_vec());
                    self.rows.insert(id, row);
                    self.next_id = self.next_id.max(id + 1);
                }
                proto::reply_insert(h, i.count as u64, first)
            }
            Body::Get(g) => {
                let mut out = proto::RecordsReply::new(h, self.schema.dim, 7, usize::MAX)?;
                for id in g.ids.iter() {
                    match self.rows.get(&id) {
                        Some((v, a)) => {
                            out.push(&proto::RecordView { id, flags: 1, vector: v, attrs: a, ..Default::default() })?
                        }
                        None => out.push(&proto::RecordView { id, ..Default::default() })?,
                    }
                }
                out.finish(wire::LIST_END)
            }
            Body::Delete(ids) => {
                let done = ids.iter().filter(|id| self.rows.remove(id).is_some()).count();
                proto::reply_delete(h, done as u64, (ids.len() - done) as u64)
            }
            Body::DeleteWhere(text) => {
                let f = Server::filter(Some(text))?;
                let before = self.rows.len();
                self.rows.retain(|_, (_, a)| !f.eval(&mut Encoded(a)).unwrap());
                proto::reply_delete(h, (before - self.rows.len()) as u64, 0)
            }
            Body::UpdateAttrs(u) => {
                u.validate()?;
                for (n, id) in u.ids.iter().enumerate() {
                    let (_, a) = self.rows.get_mut(&id).unwrap();
                    let patch = u.attrs.get(n).unwrap();
                    *a = if u.replace { patch.to_vec() } else { attrs::merge(a, patch)? };
                }
                proto::reply_delete(h, u.ids.len() as u64, 0)
            }
            Body::List(l) => {
                let f = Server::filter(l.filter)?;
                let mut out = proto::RecordsReply::new(h, self.schema.dim, 7, l.max_bytes)?;
                for (id, (v, a)) in self.rows.range(l.cursor..) {
                    if !f.eval(&mut Encoded(a)).unwrap() {
                        continue;
                    }
                    let vector: &[u32] = if l.want & wire::want::VECTORS != 0 { v } else { &[] };
                    let a: &[u8] = if l.want & wire::want::ATTRS != 0 { a } else { &[] };
                    let r = proto::RecordView { id: *id, flags: 1, vector, attrs: a, ..Default::default() };
                    if out.len() == l.max_records || !out.fits(&r) {
                        return out.finish(*id);
                    }
                    out.push(&r)?;
                }
                out.finish(wire::LIST_END)
            }
            Body::Search(s) => {
                let mut out = proto::SearchReply::new(h)?;
                for q in 0..s.queries.len() {
                    // "Distance" is the first element; every second result is a file with two names.
                    let first = s.queries.get(q).unwrap().get(0).unwrap();
                    for n in 0..s.k.min(3) as u64 {
                        out.hit((n % 2) << 63 | n, f64::from(f32::from_bits(first)).to_bits())?;
                        if n % 2 == 1 && s.paths {
                            out.path(b"one")?;
                            out.path(b"\xfftwo")?;
                        }
                    }
                    out.end_query(10, 2)?;
                }
                out.finish()
            }
            Body::Embed(e) => {
                let proto::FileRef::Name(name) = e.file else { return Err(vexfs_core::Error::NotFound.into()) };
                match e.vector {
                    Some(v) => drop(self.embeddings.insert(name.to_vec(), v.to_vec()?)),
                    None => drop(self.embeddings.remove(name)),
                }
                proto::reply_done(h)
            }
            Body::GetEmbedding(f) => {
                let proto::FileRef::Name(name) = f else { return Err(vexfs_core::Error::NotFound.into()) };
                let v = self.embeddings.get(name).ok_or(vexfs_core::Error::NoAttribute)?;
                proto::reply_embedding(h, 9, true, v)
            }
            Body::Collections(c) => {
                // Three pages: a collection, none, a collection.
                let mut out = proto::CollectionsReply::new(h)?;
                if c.cursor.0 != 1 {
                    let path: &[u8] = if c.cursor.0 == 0 { b"" } else { b"deep/er" };
                    out.push(&self.info(), self.model.as_bytes(), path)?;
                }
                out.finish((c.cursor.0 < 2).then_some((c.cursor.0 + 1, 5)))
            }
            Body::Stats => proto::reply_stats(
                h,
                &wire::StatsReply { uuid_lo: 0x0706050403020100, blocks: 99, ..Default::default() },
            ),
        }
    }

    fn reply(&mut self, frame: &[u8]) -> Vec<u8> {
        self.answer(frame).unwrap_or_else(|f| proto::reply_failure(frame, &f).unwrap())
    }
}

impl Transport for Server {
    fn call(&mut self, frame: Vec<u8>) -> io::Result<Vec<u8>> {
        Ok(self.reply(&frame))
    }
}

fn attrs_of(i: u64) -> Attrs {
    let mut a = Attrs::new();
    a.insert("n".into(), (i as i64).into());
    a.insert("half".into(), (i as f64 / 2.0).into());
    a.insert("even".into(), (i % 2 == 0).into());
    a.insert("größe".into(), format!("no {i}").into());
    a
}

fn conversation<T: Transport>(c: &mut Client<T>) {
    let mut schema = Schema::new(3, Metric::Cosine, IndexKind::Hnsw);
    schema.params.m = 16;
    schema.params.seed = u64::MAX;
    schema.model = "mini-λ".into();
    let info = c.create(&schema).unwrap();
    assert_eq!((&info.schema, info.ino, info.damaged, info.memory), (&schema, 42, 3, 4));
    assert!(info.catching_up && !info.populating);

    // Every bit of a vector arrives, negative zero and subnormals too.
    let odd = [-0.0f32, f32::from_bits(1), f32::MAX];
    let vectors: Vec<f32> = (0..30).map(|i| i as f32 / 7.0).chain(odd).collect();
    let attrs: Vec<Attrs> = (0..11).map(attrs_of).collect();
    let done = c
        .insert(&Insert { dim: 3, vectors: &vectors, attrs: Some(&attrs), durable: true, ..Default::default() })
        .unwrap();
    assert_eq!(done, Inserted { count: 11, first_id: 0 });
    let done =
        c.insert(&Insert { dim: 3, vectors: &vectors[..6], ids: Some(&[100, 50]), ..Default::default() }).unwrap();
    assert_eq!(done, Inserted { count: 2, first_id: 100 });
    assert_eq!(c.info().unwrap().next_id, 101);
    let again = Insert { dim: 3, vectors: &vectors[..6], ids: Some(&[7, 50]), if_absent: true, ..Default::default() };
    let Err(Error::Refused(e)) = c.insert(&again) else { panic!() };
    assert_eq!((e.errno, e.message.as_str(), e.position), (17, "record 7 exists", Some(0)));

    let got = c.get(&[10, 8, 3], Want::ALL).unwrap();
    assert_eq!((got.dim, got.change, got.next), (3, 7, None));
    assert_eq!(got.records[0].vector.iter().map(|f| f.to_bits()).collect::<Vec<_>>(), odd.map(f32::to_bits));
    assert_eq!(got.records[1].attrs, attrs_of(8));
    assert!(!c.get(&[999], Want::ALL).unwrap().records[0].present);

    let patch = Attrs::from([("n".into(), AttrValue::Remove), ("new".into(), "x".into())]);
    assert_eq!(c.update_attrs(&[3], &[patch], false, false).unwrap(), Changed { done: 1, missing: 0 });
    let mut want = attrs_of(3);
    want.remove("n");
    want.insert("new".into(), "x".into());
    assert_eq!(c.get(&[3], Want::ALL).unwrap().records[0].attrs, want);
    c.update_attrs(&[3], &[attrs_of(3)], true, true).unwrap();

    let mut ids = Vec::new();
    let mut cursor = 0;
    loop {
        let l = List {
            cursor,
            max_records: 2,
            filter: Some("even = true and half > 0"),
            want: Want::default(),
            ..Default::default()
        };
        let page = c.list(&l).unwrap();
        assert!(page.records.iter().all(|r| r.vector.is_empty() && r.attrs.is_empty()));
        ids.extend(page.records.iter().map(|r| r.id));
        match page.next {
            Some(n) => cursor = n,
            None => break,
        }
    }
    assert_eq!(ids, [2, 4, 6, 8, 10]);
    assert_eq!(c.delete(&[2, 4, 4, 5000], true).unwrap(), Changed { done: 2, missing: 2 });
    assert_eq!(c.delete_where("`größe` = 'no 6' or n >= 9.5", false).unwrap(), Changed { done: 2, missing: 0 });
    let Err(Error::Refused(e)) = c.delete_where("n >", false) else { panic!() };
    assert_eq!((e.errno, e.position, e.message.as_str()), (22, Some(3), "filter, byte 3: expected a value after '>'"));

    // More queries than fit one request of this k.
    let queries: Vec<f32> = (0..3 * 9000).map(|i| i as f32).collect();
    let s = Search {
        dim: 3,
        queries: &queries,
        k: 1000,
        radius: Some(0.5),
        filter: Some("n = 1"),
        paths: true,
        ..Default::default()
    };
    let found = c.search(&s).unwrap();
    assert_eq!((found.queries.len(), found.evaluations, found.hops), (9000, 90_000, 18_000));
    for (i, q) in found.queries.iter().enumerate() {
        assert_eq!(q.hits.len(), 3);
        assert_eq!(q.hits[1].distance, (i * 3) as f64);
        assert_eq!(q.hits[1].ino(), Some(1));
        assert_eq!(q.hits[1].paths, [b"one".to_vec(), b"\xfftwo".to_vec()]);
        assert_eq!((q.hits[2].ino(), q.hits[2].paths.len()), (None, 0));
    }
    let Err(Error::Refused(e)) = c.search(&Search { k: 0, ..s }) else { panic!() };
    assert_eq!(e.message, "k is 0, it has to be in 1 to 1048576");

    let file = FileRef::Name(b"a file\xff");
    c.embed(file, &odd, true).unwrap();
    let e = c.embedding(file).unwrap();
    assert_eq!((e.ino, e.stale, e.vector[1].to_bits()), (9, true, 1));
    c.remove_embedding(file, false).unwrap();
    assert_eq!(c.embedding(file).unwrap_err().errno(), Some(61));
    assert_eq!(c.embedding(FileRef::Ino(5)).unwrap_err().errno(), Some(2));

    let all = c.collections(true).unwrap();
    let paths: Vec<_> = all.iter().map(|(p, i)| (p.as_slice(), i.schema.model.as_str())).collect();
    assert_eq!(paths, [(&b""[..], "mini-λ"), (&b"deep/er"[..], "mini-λ")]);
    assert_eq!(c.reindex(Some(IndexKind::Flat), &IndexParams::default()).unwrap().schema.index, IndexKind::Flat);
    c.sync().unwrap();
    let s = c.stats().unwrap();
    assert_eq!((&s.uuid[..8], s.blocks), (&[0, 1, 2, 3, 4, 5, 6, 7][..], 99));
    c.drop_collection().unwrap();
}

#[test]
fn over_a_function_call() {
    let mut c = Client::new(Server::default());
    conversation(&mut c);
    let log = c.into_transport().log;
    // The durable flag is where it was asked for, and never on reads.
    assert!(log.contains(&(wire::op::INSERT, true)) && log.contains(&(wire::op::INSERT, false)));
    assert!(log.iter().all(|(op, durable)| !(wire::op::is_read(*op) && *durable)));
}

#[test]
fn over_a_file_in_pieces() {
    // A socket pair behaves like a control file whose driver cuts writes and reads at any place.
    let (near, mut far) = std::os::unix::net::UnixStream::pair().unwrap();
    let server = std::thread::spawn(move || {
        let mut server = Server::default();
        let mut session = proto::Session::new();
        let mut buf = [0u8; 70_000];
        let mut size = 1;
        loop {
            size = size * 7 % 69_997 + 1;
            let n = far.read(&mut buf[..size]).unwrap();
            if n == 0 {
                return server.log.len();
            }
            let mut data = &buf[..n];
            while !data.is_empty() {
                let (taken, frame) = session.write(data).unwrap();
                data = &data[taken..];
                if let Some(frame) = frame {
                    session.answer(server.reply(&frame));
                    loop {
                        size = size * 7 % 69_997 + 1;
                        let part = session.peek(size).to_vec();
                        if part.is_empty() {
                            break;
                        }
                        far.write_all(&part).unwrap();
                        session.advance(part.len());
                    }
                }
            }
        }
    });
    let file = std::fs::File::from(std::os::fd::OwnedFd::from(near));
    let mut c = Client::new(ControlFile::from_file(file));
    conversation(&mut c);
    drop(c);
    assert!(server.join().unwrap() > 20);
}

#[test]
fn mistakes_are_found_before_anything_is_sent() {
    let mut c = Client::new(Server::default());
    let nan = Attrs::from([("x".into(), f64::NAN.into())]);
    let e = c.insert(&Insert { dim: 1, vectors: &[1.0], attrs: Some(&[nan]), ..Default::default() }).unwrap_err();
    assert_eq!(e.to_string(), "record 0 of the request: attribute 'x' is NaN: only finite numbers can be stored");
    let big = Attrs::from([("x".into(), "y".repeat(65_000).into()), ("z".into(), "y".repeat(600).into())]);
    let e = c.insert(&Insert { dim: 1, vectors: &[1.0], attrs: Some(&[big]), ..Default::default() }).unwrap_err();
    assert!(e.to_string().contains("at most 65536 are allowed"), "{e}");
    let e = c.insert(&Insert { dim: 3, vectors: &[1.0; 7], ..Default::default() }).unwrap_err();
    assert!(e.to_string().contains("not a whole number of vectors"), "{e}");
    let e = c.insert(&Insert { dim: 1, vectors: &[1.0; 2], ids: Some(&[1]), ..Default::default() }).unwrap_err();
    assert_eq!(e.to_string(), "1 ids for 2 records");
    let n = Client::<Server>::max_records(1000);
    let huge = vec![0.0; 1000 * (n + 100)];
    let e = c.insert(&Insert { dim: 1000, vectors: &huge, ..Default::default() }).unwrap_err();
    assert!(e.to_string().ends_with("send less at once"), "{e}");
    assert!(c.insert(&Insert { dim: 1000, vectors: &huge[..1000 * n], ..Default::default() }).is_ok());
    assert_eq!("l3".parse::<Metric>().unwrap_err().to_string(), "unknown metric 'l3': use one of l2, cosine, ip");
    assert_eq!(c.into_transport().log.len(), 1);
}

#[test]
fn damaged_replies_are_refused() {
    struct Liar(Vec<u8>, u64);
    impl Transport for Liar {
        fn call(&mut self, request: Vec<u8>) -> io::Result<Vec<u8>> {
            let mut r = self.0.clone();
            r[8..16].copy_from_slice(&request[8..16]);
            let mut next = || {
                self.1 = self.1.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (self.1 >> 33) as usize
            };
            for _ in 0..1 + next() % 3 {
                let i = 16 + next() % (r.len() - 16);
                r[i] = [0, 1, 0x7f, 0xff, next() as u8][next() % 5];
            }
            if next() % 3 == 0 {
                let n = 32 + next() % (r.len() - 31);
                r.truncate(n);
                r[..4].copy_from_slice(&(n as u32).to_le_bytes());
            }
            Ok(r)
        }
    }
    let mut s = Server::default();
    let mut frames = Vec::new();
    struct Tap<'a>(&'a mut Server, &'a mut Vec<Vec<u8>>);
    impl Transport for Tap<'_> {
        fn call(&mut self, f: Vec<u8>) -> io::Result<Vec<u8>> {
            let r = self.0.reply(&f);
            self.1.push(r.clone());
            Ok(r)
        }
    }
    let q = Search { dim: 1, queries: &[1.0, 2.0], k: 3, paths: true, ..Default::default() };
    {
        let mut c = Client::new(Tap(&mut s, &mut frames));
        c.create(&Schema::new(1, Metric::L2, IndexKind::Flat)).unwrap();
        c.insert(&Insert {
            dim: 1,
            vectors: &[1.0, 2.0],
            attrs: Some(&[attrs_of(0), attrs_of(1)]),
            ..Default::default()
        })
        .unwrap();
        c.search(&q).unwrap();
        c.list(&List { want: Want::ALL, ..Default::default() }).unwrap();
        c.collections(true).unwrap();
    }
    for (i, frame) in frames.iter().enumerate() {
        let mut c = Client::new(Liar(frame.clone(), i as u64));
        let mut errors = 0;
        for _ in 0..20_000 {
            let failed = match i {
                0 => c.info().is_err(),
                1 => c.insert(&Insert { dim: 1, vectors: &[1.0], ..Default::default() }).is_err(),
                2 => c.search(&q).is_err(),
                3 => c.list(&List::default()).is_err(),
                _ => c.collections(false).is_err(),
            };
            errors += usize::from(failed);
        }
        assert!(errors > 5_000, "{i}: {errors}");
    }
}

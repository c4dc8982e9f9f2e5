// SPDX-License-Identifier: GPL-2.0-only
//! Tests of collections over a stand-in for the engine (`world`): single rules here, long random histories
//! against a plain model in `model`.

mod model;
mod world;

use super::*;
use crate::filter::attrs::Builder;
use crate::filter::Value;
use crate::format::{kind, Key, FILE_ID_BASE, SCHEMA_POPULATING};
use crate::index::Absent;
use crate::proto::wire::{self, index, metric, op};
use std::string::String;
use std::vec;
use std::vec::Vec;
use world::*;

pub fn schema(dim: u32, metric: u32, index: u32) -> wire::Schema {
    wire::Schema { dim, metric, element: 1, index, ..Default::default() }
}

pub fn create(w: &mut World, dir: Ino, s: wire::Schema) -> wire::CollectionInfo {
    let b = w.ask(dir, &root(), op::CREATE, &[&s.bytes()]).unwrap();
    wire::CollectionInfo::parse(&b).unwrap()
}

pub fn info(w: &mut World, dir: Ino) -> wire::CollectionInfo {
    let b = w.ask(dir, &root(), op::INFO, &[]).unwrap();
    wire::CollectionInfo::parse(&b).unwrap()
}

pub fn encode(attrs: &[(&str, Value)]) -> Vec<u8> {
    let mut b = Builder::new();
    for (name, value) in attrs {
        b.add(name.as_bytes(), *value).unwrap();
    }
    b.finish().unwrap()
}

/// Inserts; gives (count, first id).
pub fn insert(
    w: &mut World,
    dir: Ino,
    cred: &Cred,
    ids: Option<&[u64]>,
    vectors: &[Vec<u32>],
    attrs: Option<&[Vec<u8>]>,
    absent: bool,
) -> Result<(u64, u64), Refused> {
    let mut head = wire::Insert { count: vectors.len() as u32, dim: vectors[0].len() as u32, ..Default::default() };
    let mut parts: Vec<Vec<u8>> = Vec::new();
    if let Some(ids) = ids {
        head.flags |= wire::insert_flags::IDS;
        parts.push(le64(ids));
    }
    parts.push(vectors.iter().flat_map(|v| le32(v)).collect());
    if let Some(attrs) = attrs {
        head.flags |= wire::insert_flags::ATTRS;
        let mut end = 0;
        let ends: Vec<u32> = attrs
            .iter()
            .map(|a| {
                end += a.len() as u32;
                end
            })
            .collect();
        head.attrs_len = end;
        parts.push(le32(&ends));
        parts.push(attrs.concat());
    }
    if absent {
        head.flags |= wire::insert_flags::IF_ABSENT;
    }
    let head = head.bytes();
    let mut all: Vec<&[u8]> = vec![&head];
    all.extend(parts.iter().map(|p| p.as_slice()));
    let b = w.ask(dir, cred, op::INSERT, &all)?;
    let r = wire::InsertReply::parse(&b).unwrap();
    Ok((r.count, r.first_id))
}

pub struct Ask<'a> {
    pub k: u32,
    pub filter: &'a str,
    pub radius: Option<f64>,
    pub exact: bool,
}

pub fn search(w: &mut World, dir: Ino, cred: &Cred, queries: &[Vec<u32>], a: &Ask) -> Result<Vec<Vec<Found>>, Refused> {
    let mut s = wire::Search {
        count: queries.len() as u32,
        dim: queries.first().map_or(1, |q| q.len() as u32),
        k: a.k,
        flags: wire::want::PATHS,
        filter_len: a.filter.len() as u32,
        ..Default::default()
    };
    if let Some(r) = a.radius {
        s.flags |= wire::search_flags::RADIUS;
        s.radius = r.to_bits();
    }
    if a.exact {
        s.flags |= wire::search_flags::EXACT;
    }
    let q: Vec<u8> = queries.iter().flat_map(|q| le32(q)).collect();
    let b = w.ask(dir, cred, op::SEARCH, &[&s.bytes(), &q, a.filter.as_bytes()])?;
    Ok(found(&b))
}

pub fn nearest(w: &mut World, dir: Ino, cred: &Cred, q: &[f32], k: u32) -> Vec<u64> {
    let a = Ask { k, filter: "", radius: None, exact: false };
    search(w, dir, cred, &[bits(q)], &a).unwrap().remove(0).iter().map(|f| f.id).collect()
}

/// All records of a list, page by page.
pub fn list(w: &mut World, dir: Ino, cred: &Cred, filter: &str, max: (u32, u32)) -> Result<Vec<Rec>, Refused> {
    let mut all = Vec::new();
    let mut cursor = 0;
    while cursor != wire::LIST_END {
        let l = wire::List {
            cursor,
            max_records: max.0,
            max_bytes: max.1,
            flags: wire::want::ALL,
            filter_len: filter.len() as u32,
            ..Default::default()
        };
        let b = w.ask(dir, cred, op::LIST, &[&l.bytes(), filter.as_bytes()])?;
        let (page, next, _) = records(&b);
        assert!(max.0 == 0 || page.len() <= max.0 as usize);
        assert!(next > cursor);
        all.extend(page);
        cursor = next;
    }
    Ok(all)
}

pub fn get(w: &mut World, dir: Ino, cred: &Cred, ids: &[u64]) -> Vec<Rec> {
    let g = wire::Get { count: ids.len() as u32, flags: wire::want::ALL, ..Default::default() };
    records(&w.ask(dir, cred, op::GET, &[&g.bytes(), &le64(ids)]).unwrap()).0
}

pub fn delete(w: &mut World, dir: Ino, cred: &Cred, ids: &[u64]) -> Result<(u64, u64), Refused> {
    let h = wire::Ids { count: ids.len() as u32, ..Default::default() };
    let r = wire::DeleteReply::parse(&w.ask(dir, cred, op::DELETE, &[&h.bytes(), &le64(ids)])?).unwrap();
    Ok((r.done, r.missing))
}

pub fn delete_where(w: &mut World, dir: Ino, cred: &Cred, filter: &str) -> Result<u64, Refused> {
    let h = wire::Text { len: filter.len() as u32, ..Default::default() };
    let b = w.ask(dir, cred, op::DELETE_WHERE, &[&h.bytes(), filter.as_bytes()])?;
    Ok(wire::DeleteReply::parse(&b).unwrap().done)
}

pub fn update(w: &mut World, dir: Ino, ids: &[u64], attrs: &[Vec<u8>], replace: bool) -> Result<(u64, u64), Refused> {
    let mut end = 0;
    let ends: Vec<u32> = attrs
        .iter()
        .map(|a| {
            end += a.len() as u32;
            end
        })
        .collect();
    let h = wire::UpdateAttrs { count: ids.len() as u32, flags: u32::from(replace), attrs_len: end, reserved: 0 };
    let b = w.ask(dir, &root(), op::UPDATE_ATTRS, &[&h.bytes(), &le64(ids), &le32(&ends), &attrs.concat()])?;
    let r = wire::DeleteReply::parse(&b).unwrap();
    Ok((r.done, r.missing))
}

pub fn embed(w: &mut World, dir: Ino, cred: &Cred, name: &str, v: Option<&[u32]>) -> Result<(), Refused> {
    let e = wire::Embed {
        name_len: name.len() as u32,
        dim: v.map_or(0, |v| v.len() as u32),
        flags: if v.is_none() { wire::embed_flags::REMOVE } else { 0 },
        ..Default::default()
    };
    w.ask(dir, cred, op::EMBED, &[&e.bytes(), name.as_bytes(), &le32(v.unwrap_or_default())])
        .map(|b| assert!(b.is_empty()))
}

fn rename(w: &mut World, from: (Ino, &str), to: (Ino, &str)) {
    let (name, new_name) = (from.1.as_bytes().to_vec(), to.1.as_bytes().to_vec());
    w.ns(Op::Rename { dir: from.0, name, new_dir: to.0, new_name, flags: 0 }).unwrap();
}

fn unlink(w: &mut World, dir: Ino, name: &str) {
    w.ns(Op::Unlink { dir, name: name.as_bytes().to_vec() }).unwrap();
}

/// Checks the schema's counters against the records, and that every slot in use belongs to a record.
pub fn consistent(w: &mut World, dir: Ino) {
    let s = w.schema(dir);
    let mut counts = Counts::default();
    let mut from = Some(0);
    while let Some(id) = from {
        let (arrived, opens) = (crate::mem::Map::new(), crate::mem::Map::new());
        let before = std::mem::take(&mut w.misses);
        let t = Txn::new(&*w, &arrived, &opens, w.now);
        from = recount(&t, dir, id, 7, &mut counts).unwrap();
        w.misses = before;
    }
    assert_eq!((s.records, s.files, s.unindexed), (counts.records, counts.files, counts.unindexed));
    assert!(s.next_id >= counts.next_id && s.change >= counts.seq);
    let mut pieces = 0;
    for (key, value) in w.items.range(Key::first(dir, kind::RECORD)..=Key::last(dir, kind::RECORD)) {
        if key.sub == 0 {
            pieces += record::pieces(record::parse(key.offset, value).unwrap().0.attrs_len as usize);
        }
    }
    assert_eq!(pieces as usize, w.items_of(dir, kind::RECORD), "no piece of a record is left over");
    if let Some(c) = w.colls.get(&dir) {
        assert_eq!(c.live(), s.records + s.files);
        for (key, value) in w.items.range(Key::first(dir, kind::RECORD)..=Key::last(dir, kind::RECORD)) {
            if key.sub == 0 {
                let (r, _) = record::parse(key.offset, value).unwrap();
                if r.slot != crate::format::NO_SLOT {
                    let head = c.slot_head(r.slot).unwrap();
                    assert_eq!((head.id, head.seq), (key.offset, r.seq));
                    assert_eq!(
                        head.crc,
                        runtime::vector_crc(&w.env, c.vector(&Absent::new(0), r.slot, false).unwrap())
                    );
                }
            }
        }
    }
}

fn errno<T: core::fmt::Debug>(r: Result<T, Refused>) -> i32 {
    r.unwrap_err().errno
}

#[test]
fn a_life() {
    let mut w = World::new(6);
    let d = w.mkdir(1, "docs");
    let i = create(&mut w, d, schema(2, metric::L2, index::FLAT));
    assert_eq!((i.dim, i.ino, i.records, i.next_id), (2, d, 0, 0));
    let v = |x: f32, y: f32| bits(&[x, y]);
    assert_eq!(insert(&mut w, d, &root(), None, &[v(0., 0.), v(1., 0.)], None, false), Ok((2, 0)));
    assert_eq!(insert(&mut w, d, &root(), Some(&[9]), &[v(5., 5.)], None, false), Ok((1, 9)));
    assert_eq!(insert(&mut w, d, &root(), None, &[v(2., 0.)], None, false), Ok((1, 10)));
    assert_eq!(nearest(&mut w, d, &root(), &[0.9, 0.], 3), [1, 0, 10]);
    // Replacing keeps the count and moves the vector.
    assert_eq!(insert(&mut w, d, &root(), Some(&[1]), &[v(7., 7.)], None, false), Ok((1, 1)));
    assert_eq!(nearest(&mut w, d, &root(), &[0.9, 0.], 9), [0, 10, 9, 1]);
    let i = info(&mut w, d);
    assert_eq!((i.records, i.next_id), (4, 11));
    // If absent: refused with the place, nothing done.
    let e = insert(&mut w, d, &root(), Some(&[50, 9, 51]), &[v(1., 1.), v(1., 1.), v(1., 1.)], None, true).unwrap_err();
    assert_eq!((e.errno, e.position, e.done), (17, 1, 0));
    assert!(e.message.contains("record 9"));
    assert_eq!(info(&mut w, d).records, 4);
    assert_eq!(delete(&mut w, d, &root(), &[9, 777, 0]), Ok((2, 1)));
    assert_eq!(nearest(&mut w, d, &root(), &[0.9, 0.], 9), [10, 1]);
    consistent(&mut w, d);
    w.reload(d, true);
    assert_eq!(nearest(&mut w, d, &root(), &[0.9, 0.], 9), [10, 1]);
    let r = get(&mut w, d, &root(), &[1, 9]);
    assert_eq!((r[0].flags, &r[0].vector), (wire::record_flags::PRESENT, &v(7., 7.)));
    assert_eq!((r[1].flags, r[1].vector.len()), (0, 0));
    // A directory that looks empty but holds records stays.
    assert_eq!(w.ns(Op::Rmdir { dir: 1, name: b"docs".to_vec() }).unwrap_err(), Error::NotEmpty);
    w.ask(d, &root(), op::DROP, &[]).unwrap();
    assert_eq!(errno(w.ask(d, &root(), op::INFO, &[])), Error::NotCollection.errno());
    for k in [kind::COLLECTION, kind::RECORD, kind::INDEX] {
        assert_eq!(w.items_of(d, k), 0);
    }
    assert_eq!(w.items_of(0, kind::TRIM) + w.items_of(0, kind::LISTED), 0);
    w.ns(Op::Rmdir { dir: 1, name: b"docs".to_vec() }).unwrap();
    assert!(w.missed.get() > 0);
}

#[test]
fn refuses_what_makes_no_sense() {
    let mut w = World::new(0);
    let d = w.mkdir(1, "d");
    let r = root();
    for (s, field) in [
        (schema(0, 1, 1), "dim"),
        (schema(65_537, 1, 1), "dim"),
        (schema(2, 0, 1), "metric"),
        (schema(2, 4, 1), "metric"),
        (schema(2, 1, 0), "index"),
        (schema(2, 1, 6), "index"),
        (wire::Schema { element: 2, ..schema(2, 1, 1) }, "element"),
        (wire::Schema { m: 1, ..schema(2, 1, 2) }, "m "),
        (wire::Schema { m: 16, ..schema(2, 1, 1) }, "m "),
        (wire::Schema { ef_construction: 5000, ..schema(2, 1, 2) }, "ef_construction"),
        (wire::Schema { lists: 3, ..schema(2, 1, 1) }, "lists"),
        (wire::Schema { tables: 3, ..schema(2, 1, 1) }, "tables"),
        (wire::Schema { bits: 3, ..schema(2, 1, 1) }, "bits"),
        (wire::Schema { bits: 16, ..schema(2, 1, index::PQ) }, "bits"),
        (wire::Schema { bits: 33, ..schema(2, 1, index::LSH) }, "bits"),
        (wire::Schema { lists: 1 << 20, ..schema(65_536, 1, index::IVF) }, "lists"),
        (wire::Schema { tables: 1024, bits: 32, ..schema(65_536, 1, index::LSH) }, "tables"),
        (wire::Schema { subvectors: 3, ..schema(2, 1, 1) }, "subvectors"),
    ] {
        let e = w.ask(d, &r, op::CREATE, &[&s.bytes()]).unwrap_err();
        assert_eq!(e.errno, 22);
        assert!(e.message.contains(field), "{}", e.message);
    }
    let f = w.file(1, "f");
    assert_eq!(errno(w.ask(f, &r, op::CREATE, &[&schema(2, 1, 1).bytes()])), 20);
    assert_eq!(errno(w.ask(999, &r, op::CREATE, &[&schema(2, 1, 1).bytes()])), 2);
    assert_eq!(errno(insert(&mut w, d, &r, None, &[bits(&[1., 2.])], None, false)), Error::NotCollection.errno());
    create(&mut w, d, schema(2, metric::COSINE, 1));
    assert_eq!(errno(w.ask(d, &r, op::CREATE, &[&schema(2, 1, 1).bytes()])), 17);
    let good = bits(&[1., 2.]);
    for (bad, what) in [
        (bits(&[f32::NAN, 1.]), "NaN"),
        (bits(&[1., f32::INFINITY]), "NaN"),
        (bits(&[0., -0.]), "zero vector"),
        (bits(&[1e-30, 0.]), "norm"),
        (bits(&[3e38, 3e38]), "norm"),
    ] {
        let e = insert(&mut w, d, &r, None, &[good.clone(), bad], None, false).unwrap_err();
        assert_eq!((e.errno, e.position, e.done), (22, 1, 0));
        assert!(e.message.contains(what) && e.message.contains("vector 1"), "{}", e.message);
    }
    let e = insert(&mut w, d, &r, None, &[bits(&[1.])], None, false).unwrap_err();
    assert!(e.message.contains("1 dimensions") && e.message.contains("has 2"), "{}", e.message);
    assert_eq!(errno(insert(&mut w, d, &r, Some(&[FILE_ID_BASE]), core::slice::from_ref(&good), None, false)), 22);
    assert_eq!(info(&mut w, d).records, 0);
    let ask = |k, filter| Ask { k, filter, radius: None, exact: false };
    assert_eq!(errno(search(&mut w, d, &r, core::slice::from_ref(&good), &ask(0, ""))), 22);
    assert_eq!(errno(search(&mut w, d, &r, &[bits(&[1.])], &ask(1, ""))), 22);
    let e = search(&mut w, d, &r, &[good.clone(), bits(&[0., 0.])], &ask(1, "")).unwrap_err();
    assert_eq!(e.position, 1);
    let e = search(&mut w, d, &r, core::slice::from_ref(&good), &ask(1, "a = 1 and b ==")).unwrap_err();
    assert!(e.errno == 22 && e.position >= 12 && e.position <= 14, "{e:?}");
    assert_eq!(errno(delete_where(&mut w, d, &r, "a <")), 22);
    // The largest id is a bulk id; then the counter is used up.
    insert(&mut w, d, &r, Some(&[FILE_ID_BASE - 1]), core::slice::from_ref(&good), None, false).unwrap();
    let e = insert(&mut w, d, &r, None, core::slice::from_ref(&good), None, false).unwrap_err();
    assert!(e.message.contains("used up"));
    assert_eq!(list(&mut w, d, &r, "", (0, 0)).unwrap().len(), 1);
    consistent(&mut w, d);
    w.info.read_only = true;
    assert_eq!(errno(insert(&mut w, d, &r, Some(&[1]), &[good], None, false)), 30);
}

#[test]
fn requests_larger_than_a_transaction() {
    let mut w = World::new(9);
    let d = w.mkdir(1, "d");
    create(&mut w, d, schema(256, metric::IP, index::FLAT));
    let vectors: Vec<Vec<u32>> = (0..2000).map(|i| bits(&vec![1.0 + i as f32; 256])).collect();
    let blob = encode(&[("n", Value::I64(7)), ("text", Value::Str(&[b'x'; 3000]))]);
    let attrs: Vec<Vec<u8>> = vec![blob.clone(); 2000];
    assert_eq!(insert(&mut w, d, &root(), None, &vectors, Some(&attrs), false), Ok((2000, 0)));
    assert!(w.steps > 5);
    consistent(&mut w, d);
    let all = list(&mut w, d, &root(), "n = 7", (0, 300_000)).unwrap();
    assert_eq!(all.len(), 2000);
    for (i, r) in all.iter().enumerate() {
        assert_eq!((r.id, &r.vector, &r.attrs), (i as u64, &vectors[i], &blob));
    }
    // A failure in the middle of a large request keeps what the steps before did, and says so.
    let mut ids: Vec<u64> = (5000..7000).collect();
    ids[1500] = ids[3];
    let e = insert(&mut w, d, &root(), Some(&ids), &vectors, Some(&attrs), true).unwrap_err();
    assert_eq!((e.errno, e.position, e.done), (17, 1500, 1500));
    assert_eq!(info(&mut w, d).records, 3500);
    // Attributes grow and shrink.
    let small = encode(&[("n", Value::I64(7)), ("text", Value::Str(b"y"))]);
    assert_eq!(update(&mut w, d, &[3, 4, 9999], &[small.clone(), attrs[0].clone(), small.clone()], true), Ok((2, 1)));
    assert_eq!(get(&mut w, d, &root(), &[3])[0].attrs, small);
    insert(&mut w, d, &root(), Some(&[5]), &vectors[..1], None, false).unwrap();
    assert!(get(&mut w, d, &root(), &[5])[0].attrs.is_empty());
    consistent(&mut w, d);
    insert(&mut w, d, &root(), Some(&[5]), &vectors[..1], Some(&attrs[..1]), false).unwrap();
    assert_eq!(delete_where(&mut w, d, &root(), "n > 6.5 and exists(text)"), Ok(3500));
    assert_eq!(info(&mut w, d).records, 0);
    assert_eq!(w.items_of(d, kind::RECORD), 0);
    consistent(&mut w, d);
    // The largest vector with the largest attributes fits.
    let e = w.mkdir(1, "e");
    create(&mut w, e, schema(65_536, metric::L2, index::FLAT));
    let big = encode(&[("a", Value::Str(&[b'x'; 65_526]))]);
    assert_eq!(big.len(), 65_531);
    let v = bits(&vec![0.5; 65_536]);
    let (vs, bs) = (vec![v.clone(); 5], vec![big.clone(); 5]);
    assert_eq!(insert(&mut w, e, &root(), None, &vs, Some(&bs), false), Ok((5, 0)));
    assert_eq!(get(&mut w, e, &root(), &[4])[0].attrs, big);
    let e3 = update(&mut w, e, &[4], &[encode(&[("b", Value::I64(1))])], false).unwrap_err();
    assert!(e3.message.contains("65536 bytes"), "{}", e3.message);
    consistent(&mut w, e);
}

#[test]
fn files_follow_their_names() {
    let mut w = World::new(5);
    let (a, b, c) = (w.mkdir(1, "a"), w.mkdir(1, "b"), w.mkdir(1, "c"));
    create(&mut w, a, schema(2, metric::L2, index::FLAT));
    create(&mut w, b, schema(2, metric::COSINE, index::FLAT));
    create(&mut w, c, schema(3, metric::L2, index::FLAT));
    let f = w.file(a, "one");
    let id = FILE_ID_BASE + f;
    embed(&mut w, a, &root(), "one", Some(&bits(&[1., 0.]))).unwrap();
    let hit = |w: &mut World, d| {
        let a = Ask { k: 5, filter: "", radius: None, exact: false };
        search(w, d, &root(), &[bits(&[1., 1.])], &a).unwrap().remove(0)
    };
    assert_eq!(hit(&mut w, a)[0].paths, ["one"]);
    w.ns(Op::Link { ino: f, dir: a, name: b"two".to_vec() }).unwrap();
    w.ns(Op::Link { ino: f, dir: b, name: b"three".to_vec() }).unwrap();
    w.ns(Op::Link { ino: f, dir: c, name: b"four".to_vec() }).unwrap();
    let mut paths = hit(&mut w, a)[0].paths.clone();
    paths.sort();
    assert_eq!(paths, ["one", "two"]);
    assert_eq!(hit(&mut w, b)[0].paths, ["three"]);
    assert_eq!((info(&mut w, c).files, info(&mut w, c).unindexed), (0, 1));
    let r = &get(&mut w, c, &root(), &[id])[0];
    assert_eq!(r.flags, wire::record_flags::PRESENT | wire::record_flags::UNINDEXED);
    assert_eq!((&r.vector, &r.paths), (&bits(&[1., 0.]), &vec![String::from("four")]));
    // Another dimension: now only c searches it. Zero: a searches it, b (cosine) cannot.
    embed(&mut w, a, &root(), "one", Some(&bits(&[1., 2., 3.]))).unwrap();
    assert_eq!((info(&mut w, a).unindexed, info(&mut w, b).unindexed, info(&mut w, c).files), (1, 1, 1));
    embed(&mut w, a, &root(), "one", Some(&bits(&[0., 0.]))).unwrap();
    assert_eq!((info(&mut w, a).files, info(&mut w, b).unindexed, info(&mut w, c).unindexed), (1, 1, 1));
    assert_eq!(errno(embed(&mut w, a, &root(), "one", Some(&bits(&[f32::NAN, 0.])))), 22);
    assert_eq!(info(&mut w, a).files, 1);
    unlink(&mut w, a, "one");
    assert_eq!(hit(&mut w, a)[0].paths, ["two"]);
    rename(&mut w, (a, "two"), (1, "out"));
    assert_eq!((info(&mut w, a).files, hit(&mut w, a).len()), (0, 0));
    rename(&mut w, (1, "out"), (a, "in"));
    assert_eq!(hit(&mut w, a)[0].paths, ["in"]);
    // Atomic replacement: the new file's vector under the old name.
    let g = w.file(1, "tmp");
    embed(&mut w, 1, &root(), "tmp", Some(&bits(&[4., 4.]))).unwrap();
    rename(&mut w, (1, "tmp"), (a, "in"));
    let h = hit(&mut w, a);
    assert_eq!((h.len(), h[0].id, &h[0].paths), (1, FILE_ID_BASE + g, &vec![String::from("in")]));
    embed(&mut w, a, &root(), "in", None).unwrap();
    assert_eq!(info(&mut w, a).files, 0);
    assert_eq!(errno(embed(&mut w, a, &root(), "in", None)), 61);
    // Deleting the record of a file takes its embedding.
    embed(&mut w, a, &root(), "in", Some(&bits(&[4., 4.]))).unwrap();
    assert_eq!(delete(&mut w, a, &root(), &[FILE_ID_BASE + g, FILE_ID_BASE + 12345]), Ok((1, 1)));
    let e = wire::Embed { ino: g, ..Default::default() };
    assert_eq!(errno(w.ask(a, &root(), op::GET_EMBEDDING, &[&e.bytes()])), 61);
    for d in [a, b, c] {
        consistent(&mut w, d);
    }
    for name in ["three", "four"] {
        unlink(&mut w, if name == "three" { b } else { c }, name);
    }
    for d in [a, b, c] {
        assert_eq!(w.items_of(d, kind::RECORD), 0);
    }
    w.ns(Op::Rmdir { dir: 1, name: b"b".to_vec() }).unwrap();
    assert_eq!(w.items_of(0, kind::LISTED), 2);
    assert_eq!(w.items_of(b, kind::COLLECTION), 0);
}

#[test]
fn takes_existing_children_in() {
    let mut w = World::new(50);
    let d = w.mkdir(1, "d");
    let n = 1500;
    for i in 0..n {
        let name = std::format!("f{i}");
        w.file(d, &name);
        embed(&mut w, d, &root(), &name, Some(&bits(&vec![1.0 + i as f32; if i % 10 == 0 { 63 } else { 64 }])))
            .unwrap();
    }
    w.mkdir(d, "sub");
    create(&mut w, d, schema(64, metric::L2, index::FLAT));
    assert!(w.steps > 1, "{}", w.steps);
    let i = info(&mut w, d);
    assert_eq!((i.files, i.unindexed, i.flags & wire::info_flags::POPULATING), (n * 9 / 10, n / 10, 0));
    assert_eq!(w.schema(d).cursor, 0);
    consistent(&mut w, d);
    w.ask(d, &root(), op::DROP, &[]).unwrap();
    assert_eq!(w.items_of(d, kind::RECORD), 0);
    // Cut in the middle: names that come and go meanwhile are counted once, and a later run ends it.
    let mut p = Progress::default();
    w.op(|t, _| {
        let mut c = schema::Coll::new(d, Default::default(), Vec::new());
        (c.schema.dim, c.schema.metric, c.schema.element, c.schema.index) = (64, 1, 1, 1);
        schema::make(t, &mut c)?;
        t.changes_mut().populates.clear();
        Ok(Outcome::Done(Reply::Done))
    })
    .unwrap();
    let mut cuts = 0;
    while w.schema(d).flags & SCHEMA_POPULATING != 0 {
        let q = p;
        w.op(|t, _| coll_step(t, d, q)).unwrap();
        p.pos += 1;
        cuts += 1;
        let name = std::format!("f{}", cuts * 7);
        unlink(&mut w, d, &name);
        w.file(d, &name);
        embed(&mut w, d, &root(), &name, Some(&bits(&[2.0; 64]))).unwrap();
    }
    assert!(cuts > 1);
    let i = info(&mut w, d);
    assert_eq!(i.files + i.unindexed, n);
    consistent(&mut w, d);
}

/// One step of populate, ended as if it were the whole operation.
fn coll_step(t: &mut Txn, dir: Ino, mut p: Progress) -> Step<Outcome> {
    populate(t, dir, &mut p).map(|_| Outcome::Done(Reply::Done))
}

#[test]
fn permissions() {
    let mut w = World::new(4);
    let d = w.mkdir(1, "d");
    create(&mut w, d, schema(1, metric::L2, index::FLAT));
    let one = |x: f32| bits(&[x]);
    for i in 0..20 {
        let name = std::format!("f{i}");
        let f = w.file(d, &name);
        embed(&mut w, d, &root(), &name, Some(&one(i as f32))).unwrap();
        if i % 2 == 1 {
            w.chmod(f, 0o600);
        }
    }
    insert(&mut w, d, &root(), None, &[one(100.)], None, false).unwrap();
    let u = user(7);
    // He sees the even files only, and k of them.
    let ids = nearest(&mut w, d, &u, &[0.], 5);
    assert_eq!(ids.len(), 5);
    let a = Ask { k: 30, filter: "", radius: None, exact: false };
    let hits = search(&mut w, d, &u, &[one(0.), one(3.)], &a).unwrap();
    for hits in hits {
        assert_eq!(hits.len(), 11);
        let names = hits.iter().flat_map(|h| &h.paths).map(|p| p.strip_prefix('f').unwrap().parse::<u32>().unwrap());
        assert!(names.clone().count() == 10 && names.clone().all(|n| n % 2 == 0));
    }
    assert_eq!(list(&mut w, d, &u, "", (0, 0)).unwrap().len(), 11);
    let i = w.ask(d, &u, op::INFO, &[]).unwrap();
    assert_eq!(wire::CollectionInfo::parse(&i).unwrap().files, 10);
    assert_eq!(info(&mut w, d).files, 20);
    let hidden = list(&mut w, d, &root(), "", (0, 0)).unwrap().into_iter().find(|r| r.paths == ["f1"]).unwrap().id;
    let shown = list(&mut w, d, &root(), "", (0, 0)).unwrap().into_iter().find(|r| r.paths == ["f2"]).unwrap().id;
    assert_eq!(get(&mut w, d, &u, &[hidden])[0].flags, 0);
    assert_eq!(get(&mut w, d, &u, &[shown])[0].flags, wire::record_flags::PRESENT);
    // Changing needs write permission on the directory, an embedding write permission on the file.
    assert_eq!(errno(insert(&mut w, d, &u, None, &[one(1.)], None, false)), 13);
    assert_eq!(errno(delete(&mut w, d, &u, &[0])), 13);
    assert_eq!(errno(delete_where(&mut w, d, &u, "a = 1")), 13);
    assert_eq!(errno(w.ask(d, &u, op::DROP, &[])), 13);
    assert_eq!(errno(w.ask(d, &u, op::REINDEX, &[&wire::Schema::default().bytes()])), 13);
    assert_eq!(errno(embed(&mut w, d, &u, "f2", Some(&one(1.)))), 13);
    w.chmod(d, 0o757);
    assert_eq!(insert(&mut w, d, &u, None, &[one(1.)], None, false), Ok((1, 1)));
    assert_eq!(delete(&mut w, d, &u, &[hidden]), Ok((0, 1)));
    assert_eq!(errno(delete(&mut w, d, &u, &[shown])), 13);
    assert_eq!(errno(embed(&mut w, d, &u, "f2", Some(&one(1.)))), 13);
    w.chmod(d, 0o1777);
    assert_eq!(errno(w.ask(d, &u, op::DROP, &[])), 1);
    // Without read permission nothing; without search permission no files.
    w.chmod(d, 0o753);
    assert_eq!(errno(search(&mut w, d, &u, &[one(0.)], &a)), 13);
    assert_eq!(errno(w.ask(d, &u, op::INFO, &[])), 13);
    w.chmod(d, 0o754);
    assert_eq!(nearest(&mut w, d, &u, &[0.], 30), [1, 0]);
    let e = wire::Embed { name_len: 2, ..Default::default() };
    assert_eq!(errno(w.ask(d, &u, op::GET_EMBEDDING, &[&e.bytes(), b"f2"])), 13);
    w.chmod(d, 0o755);
    assert!(w.ask(d, &u, op::GET_EMBEDDING, &[&e.bytes(), b"f2"]).is_ok());
    assert_eq!(errno(w.ask(d, &u, op::GET_EMBEDDING, &[&e.bytes(), b"f1"])), 13);
    assert!(w.ask(d, &root(), op::GET_EMBEDDING, &[&e.bytes(), b"f1"]).is_ok());
    assert_eq!(errno(w.ask(d, &root(), op::GET_EMBEDDING, &[&e.bytes(), b"zz"])), 2);
}

#[test]
fn lists_collections() {
    let mut w = World::new(4);
    let (a, b) = (w.mkdir(1, "a"), w.mkdir(1, "b"));
    let ab = w.mkdir(a, "b");
    let deep = w.mkdir(ab, "deep");
    let secret = w.mkdir(b, "secret");
    for d in [a, deep, secret, 1] {
        create(&mut w, d, schema(3, metric::L2, index::FLAT));
    }
    w.chmod(b, 0o711);
    let mut listing = |dir: Ino, cred: &Cred, recursive: bool, max: u32| {
        let mut q = wire::Collections { max, flags: u32::from(recursive), ..Default::default() };
        let mut v = Vec::new();
        loop {
            let body = w.ask(dir, cred, op::COLLECTIONS, &[&q.bytes()]).unwrap();
            let h = wire::CollectionsReply::parse(&body).unwrap();
            let mut at = wire::CollectionsReply::SIZE;
            for _ in 0..h.count {
                let i = wire::CollectionInfo::parse(&body[at..]).unwrap();
                at += wire::CollectionInfo::SIZE;
                let len = u32::from_le_bytes(body[at..at + 4].try_into().unwrap()) as usize;
                at += 8 + wire::pad(i.model_len as usize);
                v.push((String::from_utf8(body[at..at + len].to_vec()).unwrap(), i.ino));
                at += wire::pad(len);
            }
            assert_eq!(at, body.len());
            if h.more == 0 {
                v.sort();
                return v;
            }
            (q.cursor, q.cursor2) = (h.cursor, h.cursor2);
        }
    };
    let s = |x: &str| String::from(x);
    for max in [0, 1] {
        let all = [(s(""), 1), (s("a"), a), (s("a/b/deep"), deep), (s("b/secret"), secret)];
        assert_eq!(listing(1, &root(), true, max), all);
        assert_eq!(listing(1, &user(5), true, max), all[..3]);
        assert_eq!(listing(1, &root(), false, max), all[..2]);
        assert_eq!(listing(a, &root(), true, max), [(s(""), a), (s("b/deep"), deep)]);
        assert_eq!(listing(deep, &root(), true, max), [(s(""), deep)]);
    }
}

#[test]
fn reindex_keeps_the_answers() {
    let mut w = World::new(12);
    let d = w.mkdir(1, "d");
    create(&mut w, d, schema(4, metric::L2, index::FLAT));
    let mut rng = Rng(77);
    let mut v = || bits(&[0; 4].map(|_| rng.below(1000) as f32));
    let vectors: Vec<Vec<u32>> = (0..500).map(|_| v()).collect();
    insert(&mut w, d, &root(), None, &vectors, None, false).unwrap();
    let q = v();
    let a = Ask { k: 10, filter: "", radius: None, exact: false };
    let before = search(&mut w, d, &root(), core::slice::from_ref(&q), &a).unwrap();
    // A stored index of many extents goes with it, and its blocks are freed.
    let e = crate::format::Extent { addr: 1000, birth: 1, blocks: 3, ..Default::default() };
    let mut b = vec![0; crate::format::Extent::SIZE + 12];
    e.emit(&mut b).unwrap();
    for i in 0..5000 {
        w.items.insert(Key::new(d, kind::INDEX_EXTENT, i * 3), b.clone());
        w.items.insert(Key::new(d, kind::SLOT_EXTENT, i * 3), b.clone());
    }
    w.items.insert(Key::new(d, kind::INDEX, 0), vec![0; crate::format::IndexRoot::SIZE]);
    let s = wire::Schema { index: index::HNSW, m: 8, ..Default::default() };
    let i = wire::CollectionInfo::parse(&w.ask(d, &root(), op::REINDEX, &[&s.bytes()]).unwrap()).unwrap();
    assert_eq!((i.index, i.m, i.ef_construction), (index::HNSW, 8, schema::EF_DEFAULT));
    assert!(w.steps > 1);
    assert_eq!(w.items_of(d, kind::INDEX_EXTENT) + w.items_of(d, kind::INDEX), 0);
    assert_eq!((w.items_of(d, kind::SLOT_EXTENT), w.freed), (5000, 15_000));
    assert_eq!(info(&mut w, d).records, 500);
    // Searches do not wait for the new index.
    assert_eq!(search(&mut w, d, &root(), core::slice::from_ref(&q), &a).unwrap(), before);
    let i = info(&mut w, d);
    assert_eq!((i.pending, i.flags & wire::info_flags::CATCHING_UP), (500, wire::info_flags::CATCHING_UP));
    let c = w.colls.get_mut(&d).unwrap();
    while c.pending() > 0 {
        assert!(c.rebuilding());
        c.work(&w.env, &Absent::new(0), 64).unwrap();
    }
    assert!(!c.rebuilding());
    assert_eq!(search(&mut w, d, &root(), core::slice::from_ref(&q), &a).unwrap(), before);
    // What comes after that is waited for.
    insert(&mut w, d, &root(), None, &vectors[..50], None, false).unwrap();
    assert_eq!(info(&mut w, d).pending, 50);
    // Unless it has waited long enough: then it sees them all the same.
    let s = wire::Search { count: 1, dim: 4, k: 60, ..Default::default() };
    let f = frame(op::SEARCH, &[&s.bytes(), &le32(&vectors[0]), b""]);
    let waited = w.op(|t, _| {
        t.waited = true;
        query(t, d, &root(), &f).map(Outcome::Done)
    });
    let Ok(Reply::Bytes(b)) = waited else { panic!("{waited:?}") };
    let hits = found(&b[wire::ReplyHead::SIZE..]).remove(0);
    assert!(hits.len() == 60 && hits.iter().any(|h| h.id == 500 && h.distance == 0.0));
    assert_eq!(info(&mut w, d).pending, 50);
    search(&mut w, d, &root(), core::slice::from_ref(&q), &a).unwrap();
    assert_eq!(info(&mut w, d).pending, 0);
    let ids: Vec<u64> = (500..550).collect();
    assert_eq!(delete(&mut w, d, &root(), &ids), Ok((50, 0)));
    // Other parameters keep those not given; back to flat has none.
    let s = wire::Schema { ef_construction: 50, ..Default::default() };
    let i = wire::CollectionInfo::parse(&w.ask(d, &root(), op::REINDEX, &[&s.bytes()]).unwrap()).unwrap();
    assert_eq!((i.index, i.m, i.ef_construction), (index::HNSW, 8, 50));
    let s = wire::Schema { index: index::FLAT, ..Default::default() };
    let i = wire::CollectionInfo::parse(&w.ask(d, &root(), op::REINDEX, &[&s.bytes()]).unwrap()).unwrap();
    assert_eq!((i.index, i.m, i.ef_construction), (index::FLAT, 0, 0));
    assert_eq!(search(&mut w, d, &root(), &[q], &a).unwrap(), before);
    let s = wire::Schema { dim: 4, ..Default::default() };
    assert_eq!(errno(w.ask(d, &root(), op::REINDEX, &[&s.bytes()])), 22);
}

#[test]
fn every_wrong_schema_field_is_found() {
    let s = crate::format::Schema {
        dim: 3,
        metric: 1,
        element: 1,
        index: 2,
        m: 16,
        ef_construction: 200,
        ..Default::default()
    };
    let mut good = vec![0; crate::format::Schema::SIZE];
    s.emit(&mut good).unwrap();
    assert!(schema::parse(&good).is_ok());
    let mut found = Vec::new();
    for f in crate::format::Schema::TABLE.fields {
        let mut b = good.clone();
        b[f.offset..f.offset + f.size].fill(0xff);
        match schema::parse(&b) {
            Err(e) => {
                assert_eq!(e.field, f.name);
                found.push(f.name);
            }
            // Counters are compared with the records, and any seed is a seed.
            Ok(_) => assert!(["seed", "records", "files", "unindexed", "change"].contains(&f.name), "{}", f.name),
        }
    }
    assert_eq!(found.len() + 5, crate::format::Schema::TABLE.fields.len());
}

/// Dropped before its children were taken in (a crash, or no memory for the work): nothing of that is left to be done.
#[test]
fn a_drop_ends_the_taking_in_of_children() {
    let mut w = World::new(0);
    let dir = w.mkdir(1, "c");
    w.file(dir, "f");
    create(&mut w, dir, schema(2, 1, 1));
    // What the engine notes when the collection is made, and removes when the work is done.
    w.items.insert(Key::new(0, kind::POPULATE, dir), std::vec![0; 8]);
    w.ask(dir, &root(), op::DROP, &[]).unwrap();
    assert_eq!(w.items_of(0, kind::POPULATE), 0);
}

// SPDX-License-Identifier: GPL-2.0-only
//! Frames of the request/reply protocol and texts of the filter language, against a live volume in memory.
//!
//! The input is a list of requests: wholly random bodies under a right head, random bytes, or well-formed requests
//! with numbers from the fuzzer. Nothing may panic or hang; every reply has to be one that the client crate accepts;
//! search results have to be in order, within the radius and no more than asked for; a filter that parses has to
//! give the same answer in its compiled form and its negation the opposite.
//!
//! Run: `cargo fuzz run protocol`.
#![no_main]

use libfuzzer_sys::{arbitrary, fuzz_target};
use std::sync::OnceLock;
use vexfs_client::{
    AttrValue, Attrs, Client, Error, FileRef, IndexKind, IndexParams, Insert, List, Metric, Schema, Search, Want,
};
use vexfs_core::filter::{attrs, Encoded, Filter};
use vexfs_core::op::{Cred, Op, Reply, ROOT};
use vexfs_core::proto::{self, wire, Session};
use vexfs_fuzz::base::base;
use vexfs_fuzz::machine::{Dir, Machine};

#[derive(arbitrary::Arbitrary, Debug)]
struct Input {
    steps: Vec<Step>,
}

#[derive(arbitrary::Arbitrary, Debug)]
enum Step {
    /// A right head, any body.
    Frame {
        dir: u8,
        op: u8,
        flags: u8,
        body: Vec<u8>,
        user: bool,
    },
    /// Anything, cut anywhere.
    Bytes {
        bytes: Vec<u8>,
        cut: u8,
    },
    Filter {
        text: String,
        attrs: Vec<u8>,
    },
    Create {
        dir: u8,
        dim: u16,
        metric: u8,
        index: u8,
        m: u32,
        ef: u32,
    },
    Insert {
        dir: u8,
        dim: u8,
        words: Vec<u32>,
        ids: Option<Vec<u64>>,
        attrs: bool,
        absent: bool,
        text: String,
    },
    Search {
        dir: u8,
        dim: u8,
        words: Vec<u32>,
        k: u32,
        ef: u16,
        radius: Option<u64>,
        filter: Option<String>,
        exact: bool,
    },
    List {
        dir: u8,
        cursor: u64,
        records: u16,
        bytes: u16,
        filter: Option<String>,
        want: u8,
    },
    Get {
        dir: u8,
        ids: Vec<u64>,
    },
    Delete {
        dir: u8,
        ids: Vec<u64>,
    },
    DeleteWhere {
        dir: u8,
        filter: String,
    },
    Update {
        dir: u8,
        id: u64,
        name: String,
        value: u8,
        replace: bool,
    },
    Embed {
        dir: u8,
        name: u8,
        words: Vec<u32>,
        remove: bool,
    },
    Reindex {
        dir: u8,
        index: u8,
        m: u32,
    },
    Drop {
        dir: u8,
    },
    Collections {
        recursive: bool,
    },
}

/// A reply must be one of the protocol, whatever it says.
fn check<T>(r: Result<T, Error>) -> Option<T> {
    match r {
        Ok(v) => Some(v),
        Err(Error::Protocol(e)) => panic!("a reply that the client does not take: {e}"),
        Err(Error::Refused(e)) => {
            assert!(e.errno > 0 && e.errno < 134 && !e.message.is_empty(), "{e:?}");
            None
        }
        Err(_) => None,
    }
}

fn reply_is_one(frame: &[u8], reply: &[u8]) {
    let h = wire::ReplyHead::parse(reply).expect("a head");
    assert_eq!(h.len as usize, reply.len());
    assert_eq!(h.version, wire::VERSION);
    if let Some(q) = wire::RequestHead::parse(frame) {
        assert_eq!((h.op, h.tag), (q.op, q.tag));
    }
    if h.status != 0 {
        assert!(std::str::from_utf8(&reply[32..]).is_ok_and(|m| !m.is_empty()));
    }
}

fn directories() -> &'static [u64; 4] {
    static DIRS: OnceLock<[u64; 4]> = OnceLock::new();
    DIRS.get_or_init(|| {
        let mut m = Machine::open(base().clean.clone(), true).map_err(|e| e.0).unwrap();
        let mut dir = |name: &[u8]| match m.call(Op::Lookup { dir: ROOT, name: name.to_vec() }) {
            Ok(Reply::Attr(a)) => a.ino,
            r => panic!("{r:?}"),
        };
        [dir(b"hnsw"), dir(b"flat"), ROOT, dir(b"many")]
    })
}

fn floats(words: &[u32], dim: usize, at_most: usize) -> Vec<f32> {
    let n = (words.len() / dim.max(1)).clamp(1, at_most) * dim;
    words.iter().copied().chain(std::iter::repeat(0x3f80_0000)).take(n).map(f32::from_bits).collect()
}

fn filter(text: &str, blob: &[u8]) {
    let Ok(f) = Filter::parse(text.as_bytes()) else { return };
    let mut source: &[u8] = &[];
    if attrs::validate(blob, false).is_ok() {
        source = blob;
        assert_eq!(attrs::merge(blob, &[]).unwrap(), blob);
    }
    let yes = f.eval(&mut Encoded(source)).expect("attributes in memory");
    // The opposite, if there is room for it.
    if let Ok(not) = Filter::parse(format!("not ({text})").as_bytes()) {
        assert_eq!(not.eval(&mut Encoded(source)), Ok(!yes), "{text}");
    }
    if let Ok(both) = Filter::parse(format!("({text}) and exists(a) or ({text})").as_bytes()) {
        assert_eq!(both.eval(&mut Encoded(source)), Ok(yes), "{text}");
    }
}

fn step(m: &mut Machine, s: Step) {
    let dir = |n: u8| directories()[usize::from(n) % 4];
    let kind = |n: u8| IndexKind::ALL[usize::from(n) % IndexKind::ALL.len()];
    let client = |m, n| Client::new(Dir { machine: m, ino: dir(n) });
    match s {
        Step::Frame { dir: d, op, flags, body, user } => {
            let len = (wire::RequestHead::SIZE + body.len()) as u32;
            let head = wire::RequestHead {
                len,
                version: wire::VERSION,
                op: u16::from(op % 20),
                tag: 9,
                flags: u32::from(flags % 4),
                ..Default::default()
            };
            let frame = [&head.bytes()[..], &body].concat();
            let cred = if user { Cred { uid: 1000, gid: 1000, groups: vec![5, 6] } } else { Cred::default() };
            if let Ok(reply) = m.request_as(dir(d), cred, frame.clone()) {
                reply_is_one(&frame, &reply);
            }
        }
        Step::Bytes { bytes, cut } => {
            let mut session = Session::new();
            for part in bytes.chunks(usize::from(cut) + 1) {
                let mut part = part;
                while !part.is_empty() {
                    let Ok((taken, frame)) = session.write(part) else { return };
                    part = &part[taken..];
                    if let Some(frame) = frame {
                        let reply = match m.request(dir(cut), frame.clone()) {
                            Ok(r) => r,
                            Err(e) => proto::reply_failure(&frame, &e.into()).unwrap(),
                        };
                        reply_is_one(&frame, &reply);
                        session.answer(reply);
                        while !session.peek(100).is_empty() {
                            session.advance(77);
                        }
                    }
                }
            }
        }
        Step::Filter { text, attrs } => filter(&text, &attrs),
        Step::Create { dir: d, dim, metric, index, m: links, ef } => {
            let mut schema = Schema::new(u32::from(dim), Metric::ALL[usize::from(metric) % 3], kind(index));
            schema.params.m = links;
            schema.params.ef_construction = ef;
            check(client(m, d).create(&schema));
        }
        Step::Insert { dir: d, dim, words, ids, attrs, absent, text } => {
            let vectors = floats(&words, usize::from(dim), 64);
            let count = vectors.len() / usize::from(dim.max(1));
            let ids = ids.map(|mut ids| {
                ids.resize(count, 5);
                ids
            });
            let a = Attrs::from([("text".to_string(), text.into()), ("n".into(), 5i64.into())]);
            let attrs = attrs.then(|| vec![a; count]);
            let i = Insert {
                dim: dim.into(),
                vectors: &vectors,
                ids: ids.as_deref(),
                attrs: attrs.as_deref(),
                if_absent: absent,
                durable: absent,
            };
            let mut c = client(m, d);
            if check(c.insert(&i)).is_some() {
                if let Some(last) = ids.as_ref().and_then(|ids| ids.last()) {
                    let got = check(c.get(&[*last], Want::ALL)).expect("a record that was just inserted");
                    let want: Vec<u32> =
                        vectors[(count - 1) * usize::from(dim)..].iter().map(|f| f.to_bits()).collect();
                    assert_eq!(got.records[0].vector.iter().map(|f| f.to_bits()).collect::<Vec<_>>(), want);
                }
            }
        }
        Step::Search { dir: d, dim, words, k, ef, radius, filter, exact } => {
            let queries = floats(&words, usize::from(dim), 8);
            let s = Search {
                dim: dim.into(),
                queries: &queries,
                k,
                ef: ef.into(),
                radius: radius.map(f64::from_bits),
                filter: filter.as_deref(),
                paths: true,
                exact,
                ..Search::default()
            };
            for q in check(client(m, d).search(&s)).map_or(Vec::new(), |f| f.queries) {
                assert!(q.hits.len() <= k as usize);
                assert!(q.hits.windows(2).all(|w| (w[0].distance, w[0].id) < (w[1].distance, w[1].id)), "{:?}", q.hits);
                if let Some(r) = s.radius {
                    assert!(q.hits.iter().all(|h| h.distance <= r));
                }
            }
        }
        Step::List { dir: d, cursor, records, bytes, filter, want } => {
            let want = Want { vectors: want & 1 != 0, attrs: want & 2 != 0, paths: want & 4 != 0 };
            let l =
                List { cursor, max_records: records.into(), max_bytes: bytes.into(), filter: filter.as_deref(), want };
            if let Some(page) = check(client(m, d).list(&l)) {
                assert!(page.records.iter().all(|r| r.id >= cursor && r.present));
                assert!(page.records.windows(2).all(|w| w[0].id < w[1].id));
                assert!(page.next.is_none_or(|n| page.records.last().is_none_or(|r| n > r.id)));
            }
        }
        Step::Get { dir: d, ids } => {
            if let Some(r) = check(client(m, d).get(&ids, Want::ALL)) {
                assert!(r.records.iter().map(|r| r.id).eq(ids));
            }
        }
        Step::Delete { dir: d, ids } => {
            if let Some(c) = check(client(m, d).delete(&ids, false)) {
                assert_eq!(c.done + c.missing, ids.len() as u64);
            }
        }
        Step::DeleteWhere { dir: d, filter } => {
            let mut c = client(m, d);
            if check(c.delete_where(&filter, false)).is_some() {
                let l = List { filter: Some(&filter), ..List::default() };
                let left = check(c.list(&l)).map_or(Vec::new(), |p| p.records);
                assert!(left.iter().all(|r| r.id >= wire::FILE_ID_BASE), "records that were just deleted");
            }
        }
        Step::Update { dir: d, id, name, value, replace } => {
            let value = [AttrValue::Remove, 1i64.into(), 0.5.into(), true.into(), name.clone().into()]
                [usize::from(value) % 5]
                .clone();
            check(client(m, d).update_attrs(&[id % 100], &[Attrs::from([(name, value)])], replace, false));
        }
        Step::Embed { dir: d, name, words, remove } => {
            let names: [&[u8]; 4] = [b"x.txt", b"small", b"nothing", b""];
            let file = FileRef::Name(names[usize::from(name) % 4]);
            let v: Vec<f32> = words.iter().map(|w| f32::from_bits(*w)).collect();
            let mut c = client(m, d);
            if remove {
                check(c.remove_embedding(file, false));
            } else if check(c.embed(file, &v, false)).is_some() {
                let got = check(c.embedding(file)).expect("an embedding that was just set");
                assert!(got.vector.iter().map(|f| f.to_bits()).eq(words));
            }
        }
        Step::Reindex { dir: d, index, m: links } => {
            check(client(m, d).reindex(Some(kind(index)), &IndexParams { m: links, ..IndexParams::default() }));
        }
        Step::Drop { dir: d } => drop(check(client(m, d).drop_collection())),
        Step::Collections { recursive } => drop(check(client(m, 2).collections(recursive))),
    }
}

fuzz_target!(|input: Input| {
    let mut m = Machine::open(base().clean.clone(), false).map_err(|e| e.0).expect("the base image opens");
    for s in input.steps.into_iter().take(12) {
        step(&mut m, s);
    }
    m.settle();
});

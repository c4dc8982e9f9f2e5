// SPDX-License-Identifier: GPL-2.0-only
use super::wire::{self, op, RequestHead};
use super::*;
use std::string::ToString;
use std::vec;
use std::vec::Vec;

/// A frame of a structure and sections, each padded.
fn frame(op: u16, flags: u32, parts: &[&[u8]]) -> Vec<u8> {
    let mut f = RequestHead { version: wire::VERSION, op, tag: 77, flags, ..Default::default() }.bytes().to_vec();
    for p in parts {
        f.extend_from_slice(p);
        f.resize(wire::pad(f.len()), 0);
    }
    let len = f.len() as u32;
    f[..4].copy_from_slice(&len.to_le_bytes());
    f
}

fn le32(w: &[u32]) -> Vec<u8> {
    w.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn le64(w: &[u64]) -> Vec<u8> {
    w.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn refused(f: &[u8]) -> (Error, std::string::String) {
    let e = decode(f).expect_err("refused");
    (e.error, e.message().to_string())
}

fn samples() -> Vec<Vec<u8>> {
    let schema = wire::Schema { dim: 3, metric: 2, element: 1, index: 2, model_len: 5, ..Default::default() };
    let ins = wire::Insert { count: 3, dim: 3, flags: 7, attrs_len: 10, ..Default::default() };
    let upd = wire::UpdateAttrs { count: 2, flags: 1, attrs_len: 5, ..Default::default() };
    let s = wire::Search {
        count: 2,
        dim: 3,
        k: 10,
        flags: 4 | 16 | 32,
        filter_len: 5,
        radius: 1.5f64.to_bits(),
        ..Default::default()
    };
    let named = wire::Embed { name_len: 5, dim: 3, ..Default::default() };
    vec![
        frame(op::CREATE, 1, &[&schema.bytes(), b"model"]),
        frame(op::INFO, 0, &[]),
        frame(op::DROP, 0, &[]),
        frame(op::REINDEX, 0, &[&wire::Schema::default().bytes(), b""]),
        frame(
            op::INSERT,
            1,
            &[
                &ins.bytes(),
                &le64(&[5, 6, 7]),
                &le32(&[1, 2, 3, 4, 5, 6, 7, 8, 9]),
                &le32(&[5, 5, 10]),
                b"\x01\x04\x01\x00a\x01\x04\x01\x00b",
            ],
        ),
        frame(op::GET, 0, &[&wire::Get { count: 2, flags: 7, ..Default::default() }.bytes(), &le64(&[1, u64::MAX])]),
        frame(op::DELETE, 0, &[&wire::Ids { count: 1, ..Default::default() }.bytes(), &le64(&[9])]),
        frame(op::DELETE_WHERE, 0, &[&wire::Text { len: 5, ..Default::default() }.bytes(), b"a = 1"]),
        frame(op::UPDATE_ATTRS, 0, &[&upd.bytes(), &le64(&[1, 2]), &le32(&[0, 5]), b"\x01\x04\x01\x00a"]),
        frame(op::SEARCH, 0, &[&s.bytes(), &le32(&[1, 2, 3, 4, 5, 6]), b"a = 1"]),
        frame(op::LIST, 0, &[&wire::List { cursor: 4, flags: 3, ..Default::default() }.bytes(), b""]),
        frame(op::EMBED, 0, &[&named.bytes(), b"a.txt", &le32(&[1, 2, 3])]),
        frame(op::EMBED, 0, &[&wire::Embed { ino: 9, flags: 1, ..Default::default() }.bytes()]),
        frame(op::GET_EMBEDDING, 0, &[&wire::Embed { ino: 9, ..Default::default() }.bytes()]),
        frame(op::SYNC, 0, &[]),
        frame(op::COLLECTIONS, 0, &[&wire::Collections { flags: 1, ..Default::default() }.bytes()]),
        frame(op::STATS, 0, &[]),
    ]
}

#[test]
fn requests_are_decoded() {
    let all = samples();
    let get = |i: usize| decode(&all[i]).unwrap_or_else(|e| panic!("{i}: {}", e.message()));
    let r = get(0);
    assert!(r.durable && r.head.tag == 77);
    assert!(matches!(r.body, Body::Create(Schema { model: "model", schema }) if schema.dim == 3 && schema.metric == 2));
    let Body::Insert(i) = get(4).body else { panic!() };
    assert!(i.if_absent && i.count == 3 && i.vectors.len() == 3 && i.vectors.dim() == 3);
    assert_eq!(i.ids.unwrap().iter().collect::<Vec<_>>(), [5, 6, 7]);
    assert_eq!(i.vectors.get(1).unwrap().to_vec().unwrap(), [4, 5, 6]);
    assert_eq!(i.vectors.get(3), None);
    assert_eq!(i.attrs_of(0), Ok(&b"\x01\x04\x01\x00a"[..]));
    assert_eq!(i.attrs_of(1), Ok(&b""[..]));
    assert_eq!(i.attrs_of(3), Err(Error::Invalid));
    // Record 0's entry lacks its value byte: found when the batch is validated, with the record's number.
    let e = i.validate().unwrap_err();
    assert_eq!((e.position, e.message()), (0, "record 0: its attributes are cut off"));
    let Body::Search(s) = get(9).body else { panic!() };
    assert_eq!((s.queries.len(), s.k, s.radius, s.filter), (2, 10, Some(1.5f64.to_bits()), Some(&b"a = 1"[..])));
    assert!(s.paths && s.exact);
    assert!(
        matches!(get(11).body, Body::Embed(Embed { file: FileRef::Name(b"a.txt"), vector: Some(v) }) if v.len() == 3)
    );
    assert!(matches!(get(12).body, Body::Embed(Embed { file: FileRef::Ino(9), vector: None })));
    assert!(matches!(get(13).body, Body::GetEmbedding(FileRef::Ino(9))));
    for (i, f) in all.iter().enumerate() {
        get(i);
        let reads = [1, 5, 9, 10, 13, 15, 16].contains(&i);
        assert_eq!(is_read(f), reads, "{i}");
    }
}

#[test]
fn refusals_name_the_cause() {
    let ins =
        |count, dim, flags, attrs_len| wire::Insert { count, dim, flags, attrs_len, ..Default::default() }.bytes();
    let f = frame(op::INSERT, 0, &[&ins(0, 3, 0, 0)]);
    assert_eq!(refused(&f), (Error::Invalid, "records: there is none in the request".into()));
    let f = frame(op::INSERT, 0, &[&ins(u32::MAX, 65536, 0, 0), &[0; 64]]);
    assert_eq!(refused(&f).1, "the frame is shorter than its operation needs");
    let f = frame(op::INSERT, 0, &[&ins(1, 65537, 0, 0), &[0; 64]]);
    assert_eq!(refused(&f).1, "dimension 65537 is not in 1 to 65536");
    let f = frame(op::INSERT, 0, &[&ins(1, 1, 2, 8), &[0; 4], &le32(&[7]), &[0; 8]]);
    assert_eq!(refused(&f).1, "the table of attributes does not end with the attributes");
    let f = frame(op::INSERT, 0, &[&ins(1, 1, 8, 0), &[0; 4]]);
    assert_eq!(refused(&f).1, "a reserved field is not zero, or a flag is not known");
    let s = |k, radius, flags| wire::Search { count: 1, dim: 1, k, radius, flags, ..Default::default() }.bytes();
    assert_eq!(refused(&frame(op::SEARCH, 0, &[&s(0, 0, 0), &[0; 4]])).1, "k is 0, it has to be in 1 to 1048576");
    assert_eq!(
        refused(&frame(op::SEARCH, 0, &[&s(1, f64::NAN.to_bits(), 16), &[0; 4]])).1,
        "the radius is not a number"
    );
    let many = wire::Search { count: 4097, dim: 1, k: 1, ..Default::default() }.bytes();
    let f = frame(op::SEARCH, 0, &[&many, &[0; 4 * 4097]]);
    assert_eq!(refused(&f), (Error::TooBig, "4097 queries at once, at most 4096 are allowed".into()));
    assert!(decode(&frame(op::SEARCH, 0, &[&s(1, f64::INFINITY.to_bits(), 16), &[0; 4]])).is_ok());
    let mut f = frame(op::SEARCH, 0, &[&s(1, 0, 0), &[0; 4]]);
    *f.last_mut().unwrap() = 1;
    assert_eq!(refused(&f).1, "padding in the frame is not zero");
    assert_eq!(refused(&frame(op::INFO, 0, &[&[0; 8]])).1, "the frame is longer than its operation needs");
    assert_eq!(refused(&frame(99, 0, &[])), (Error::NotSupported, "operation 99 is not known".into()));
    let mut f = frame(op::INFO, 0, &[]);
    f[4] = 2;
    assert_eq!(refused(&f).1, "protocol version 2 is not known, this volume speaks 1");
    f[0] = 31;
    assert_eq!(refused(&f).1, "the frame says 31 bytes but has 32");
    let f = frame(
        op::EMBED,
        0,
        &[&wire::Embed { ino: 1, name_len: 1, dim: 1, ..Default::default() }.bytes(), b"a", &[0; 4]],
    );
    assert_eq!(refused(&f).1, "a file is named either by its inode or by its name");
    let f = frame(
        op::EMBED,
        0,
        &[&wire::Embed { name_len: 256, dim: 1, ..Default::default() }.bytes(), &[b'a'; 256], &[0; 4]],
    );
    assert_eq!(refused(&f).0, Error::NameTooLong);
    let f = frame(op::CREATE, 0, &[&wire::Schema { model_len: 1, ..Default::default() }.bytes(), b"\xff"]);
    assert_eq!(refused(&f).1, "the model name is not UTF-8");
    // Ids of files are not for insert.
    let f = frame(op::INSERT, 0, &[&ins(1, 1, 1, 0), &le64(&[1 << 63]), &[0; 4]]);
    let Body::Insert(i) = decode(&f).unwrap().body else { panic!() };
    assert!(i.validate().unwrap_err().message().starts_with("record 0: its id is above 2^63 - 1"));
    // The reply to what is no request at all still has a head.
    for n in 0..40 {
        let bad = vec![0xffu8; n];
        let reply = reply_failure(&bad, &decode(&bad).unwrap_err()).unwrap();
        let h = wire::ReplyHead::parse(&reply).unwrap();
        assert_eq!((h.len as usize, h.status), (reply.len(), 22));
    }
}

#[test]
fn damaged_frames_never_panic() {
    let mut x = 1u64;
    let mut rnd = move || {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) as usize
    };
    let all = samples();
    let mut good = 0;
    for _ in 0..400_000 {
        let mut f = all[rnd() % all.len()].clone();
        for _ in 0..1 + rnd() % 3 {
            let i = rnd() % f.len();
            f[i] = [0, 1, 0x7f, 0x80, 0xff, rnd() as u8][rnd() % 6];
        }
        if rnd() % 4 == 0 {
            f.truncate(rnd() % (f.len() + 1));
        }
        if rnd() % 2 == 0 && f.len() >= 8 {
            let n = f.len() as u32;
            f[..4].copy_from_slice(&n.to_le_bytes());
        }
        if let Ok(r) = decode(&f) {
            good += 1;
            match r.body {
                Body::Insert(i) => {
                    let _ = i.validate();
                    for n in 0..=i.count {
                        let _ = (i.attrs_of(n), i.vectors.get(n));
                    }
                }
                Body::UpdateAttrs(u) => {
                    let _ = u.validate();
                }
                _ => {}
            }
        }
    }
    assert!(good > 10_000, "{good}");
}

#[test]
fn texts_are_cut_at_a_character() {
    let t = Text::of(format_args!("{}", "ä".repeat(60)));
    assert_eq!(t.as_str(), "ä".repeat(47));
    assert_eq!(Text::of(format_args!("a{}", 1)).as_str(), "a1");
    assert!(core::mem::size_of::<Failure>() <= 120);
}

#[test]
fn sessions_put_frames_together_from_any_split() {
    let all = samples();
    let mut x = 5u64;
    let mut rnd = move |n: usize| {
        x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (x >> 33) as usize % n
    };
    let mut s = Session::new();
    for round in 0..5000 {
        let f = &all[round % all.len()];
        // Bytes of the next frame in the same write are left to the next write.
        let mut stream = f.clone();
        stream.extend_from_slice(&all[0]);
        let mut at = 0;
        let got = loop {
            let n = rnd(60).min(stream.len() - at);
            let (taken, whole) = s.write(&stream[at..at + n]).unwrap();
            at += taken;
            match whole {
                Some(w) => break w,
                None => assert_eq!(taken, n),
            }
        };
        assert_eq!((&got, at), (f, f.len()));
        assert_eq!(s.write(b"x"), Err(Error::Busy));
        assert!(s.peek(9).is_empty());
        let reply: Vec<u8> = (0..rnd(300)).map(|i| i as u8).collect();
        s.answer(reply.clone());
        if round % 3 == 0 {
            continue; // nobody reads it
        }
        let mut read = Vec::new();
        loop {
            let part = s.peek(1 + rnd(50)).to_vec();
            if part.is_empty() {
                break;
            }
            s.advance(part.len());
            read.extend(part);
        }
        assert_eq!(read, reply);
    }
    s.abandon();
    assert_eq!(s.write(&31u32.to_le_bytes()), Err(Error::Invalid));
    assert_eq!(s.write(&[1]).unwrap().0, 1);
    assert_eq!(s.write(&[0, 0, 4]), Err(Error::TooBig)); // 64 MiB + 1
    assert!(s.write(&(64u32 << 20).to_le_bytes()).is_ok());
}

#[test]
fn replies_are_written() {
    let head = RequestHead { op: op::SEARCH, tag: 5, ..Default::default() };
    let mut r = SearchReply::new(&head).unwrap();
    r.hit(1, 10).unwrap();
    r.hit(2, 20).unwrap();
    r.path(b"x").unwrap();
    r.path(b"yy").unwrap();
    r.end_query(7, 3).unwrap();
    r.end_query(1, 1).unwrap();
    let f = r.finish().unwrap();
    assert_eq!(wire::ReplyHead::parse(&f).unwrap().len as usize, f.len());
    let t = wire::SearchReply::parse(&f[32..]).unwrap();
    assert_eq!((t.count, t.evaluations, t.hops), (2, 8, 4));
    let q = wire::QueryHead::parse(&f[64..]).unwrap();
    assert_eq!((q.hits, q.paths_len), (2, 7));
    assert_eq!(wire::Hit::parse(&f[88..]).unwrap().paths, 0);
    assert_eq!(wire::Hit::parse(&f[112..]).unwrap(), wire::Hit { id: 2, distance: 20, paths: 2, reserved: 0 });
    assert_eq!(&f[136..143], b"\x01\x00x\x02\x00yy");
    assert_eq!(wire::QueryHead::parse(&f[144..]).unwrap().hits, 0);
    assert_eq!(f.len(), 168);

    let mut r = RecordsReply::new(&head, 2, 9, 200).unwrap();
    let rec = RecordView { id: 4, flags: 1, vector: &[1, 2], attrs: b"abc", ..Default::default() };
    let mut n = 0;
    while r.fits(&rec) {
        r.push(&rec).unwrap();
        n += 1;
    }
    assert_eq!((n, r.len()), (2, 2)); // 64 + 2 * 48 = 160
    let f = r.finish(5).unwrap();
    assert_eq!(
        wire::RecordsReply::parse(&f[32..]).unwrap(),
        wire::RecordsReply { count: 2, dim: 2, next: 5, change: 9, reserved: 0 }
    );
    assert_eq!(f.len(), 160);
    // A reply that is too large is refused, not cut.
    let mut r = RecordsReply::new(&head, 2, 9, usize::MAX).unwrap();
    let big = vec![0u32; 65536];
    let rec = RecordView { vector: &big, ..Default::default() };
    let e = loop {
        if let Err(e) = r.push(&rec) {
            break e;
        }
    };
    assert_eq!((e.error, r.len()), (Error::TooBig, 255));
}

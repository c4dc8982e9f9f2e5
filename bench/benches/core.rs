// SPDX-License-Identifier: GPL-2.0-only
//! Criterion benches of the parts: distance kernels, filters, index search, operations on the tree. The whole volume
//! is in memory here, so that they measure code and not a disk. Run: `cargo bench -p vexfs-bench`.

#![allow(missing_docs)] // criterion_group! makes a function without

use criterion::{criterion_group, criterion_main, BenchmarkId, Criterion, Throughput};
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use vexfs_cli::data::VectorSource;
use vexfs_client::{AttrValue, Attrs, Client, IndexKind, Insert, Metric, Schema, Search, Transport};
use vexfs_core::dist::{Batch, Distance, Metric as Measure, Native, Query, BATCH};
use vexfs_core::filter::{attrs, Encoded, Filter, Value};
use vexfs_core::op::{Cred, Ino, Op, Reply, ROOT};
use vexfs_embedded::{make, Files, Host, HostOptions, MakeOptions, MemDevice};

/// A volume in memory.
fn host() -> Arc<Host> {
    let device = MemDevice::new(vec![0; 512 << 20]);
    make(&device, &MakeOptions::default()).expect("mkfs");
    Arc::new(Host::open(Box::new(device), "memory", &HostOptions::default()).expect("open"))
}

/// A directory of it, for the client.
struct Dir(Arc<Host>, Ino);

impl Transport for Dir {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        self.0.request(self.1, Cred::default(), frame).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}

fn sample(name: &str) -> (usize, Vec<f32>) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name);
    VectorSource { npy: Some(path), ..VectorSource::default() }.read().expect("the sample data")
}

fn distances(c: &mut Criterion) {
    let mut g = c.benchmark_group("distance");
    let best = Native::best();
    let scalar = Native::scalar();
    for dim in [128usize, 384, 1536] {
        let words: Vec<Vec<u32>> =
            (0..=BATCH).map(|r| (0..dim).map(|i| ((i * 31 + r * 17) as f32).sin().to_bits()).collect()).collect();
        let mut batch = Batch::new(dim);
        for w in &words[1..] {
            assert!(batch.push(w, 1f64.to_bits()));
        }
        g.throughput(Throughput::Elements(BATCH as u64));
        for (metric, name) in [(Measure::L2, "l2"), (Measure::Cosine, "cosine")] {
            for k in [&scalar, &best] {
                let query = Query { metric, words: &words[0], inv_norm: 1f64.to_bits() };
                let mut keys = [0; BATCH];
                g.bench_function(BenchmarkId::new(format!("{name}/{}", k.name()), dim), |b| {
                    b.iter(|| k.many(black_box(&query), black_box(&batch), black_box(&mut keys)));
                });
            }
        }
    }
    g.finish();
}

fn filters(c: &mut Criterion) {
    let mut g = c.benchmark_group("filter");
    let text = b"section = \"libs\" and installed_kib < 1000 and not priority in ('required', 'important')";
    let mut record = attrs::Builder::new();
    for (name, value) in [
        ("section", Value::Str(b"libs")),
        ("installed_kib", Value::I64(742)),
        ("priority", Value::Str(b"optional")),
        ("name", Value::Str(b"libexample1")),
        ("popularity", Value::F64(0.25f64.to_bits())),
    ] {
        record.add(name.as_bytes(), value).expect("attributes");
    }
    let record = record.finish().expect("attributes");
    let filter = Filter::parse(text).expect("a filter");
    assert_eq!(filter.eval(&mut Encoded(&record)), Ok(true));
    g.bench_function("parse", |b| b.iter(|| Filter::parse(black_box(text)).map(|f| f.names().count())));
    g.bench_function("evaluate", |b| b.iter(|| filter.eval(&mut Encoded(black_box(&record)))));
    let floats: [&[u8]; 3] = [b"0.1", b"12345.678e-30", b"2.2250738585072011e-308"];
    g.bench_function("read a float", |b| b.iter(|| floats.map(|f| vexfs_core::filter::number::parse(black_box(f)))));
    g.finish();
}

/// Waits until everything is in the index.
fn settle(client: &mut Client<Dir>) {
    while client.info().is_ok_and(|i| i.pending > 0 || i.catching_up) {
        std::thread::sleep(std::time::Duration::from_micros(200));
    }
}

fn searches(c: &mut Criterion) {
    let mut g = c.benchmark_group("search 2,000 × 384");
    let host = host();
    let (dim, base) = sample("sample.base.npy");
    let (_, queries) = sample("sample.query.npy");
    let attributes: Vec<Attrs> =
        (0..base.len() / dim).map(|i| Attrs::from([("n".into(), AttrValue::I64(i as i64))])).collect();
    for kind in IndexKind::ALL.iter().copied() {
        let name = kind.name();
        let dir = Files::new(&host).mkdir(format!("/{name}").as_bytes(), 0o755).expect("mkdir").ino;
        let mut client = Client::new(Dir(host.clone(), dir));
        client.create(&Schema::new(dim as u32, Metric::Cosine, kind)).expect("create");
        client
            .insert(&Insert { dim: dim as u32, vectors: &base, attrs: Some(&attributes), ..Insert::default() })
            .expect("insert");
        settle(&mut client);
        // The number is the effort of the kind: ef, nprobe, rerank.
        let cases: &[(&str, u32, Option<&str>)] = match kind {
            IndexKind::Flat => &[("exact", 0, None), ("exact, 5 % match", 0, Some("n < 100"))],
            IndexKind::Hnsw => &[("ef 16", 16, None), ("ef 64", 64, None), ("ef 64, 5 % match", 64, Some("n < 100"))],
            IndexKind::Ivf => &[("nprobe 8", 8, None), ("nprobe 32", 32, None)],
            _ => &[("rerank 50", 50, None), ("rerank 200", 200, None)],
        };
        for (case, effort, filter) in cases {
            let of = |k| if kind == k { *effort } else { 0 };
            let mut q = 0;
            g.bench_function(format!("{name}, {case}"), |b| {
                b.iter(|| {
                    q = (q + 1) % (queries.len() / dim);
                    let query = &queries[q * dim..(q + 1) * dim];
                    let s = Search {
                        dim: dim as u32,
                        queries: query,
                        k: 10,
                        ef: of(IndexKind::Hnsw),
                        nprobe: of(IndexKind::Ivf),
                        rerank: of(IndexKind::Pq).max(of(IndexKind::Lsh)),
                        filter: *filter,
                        ..Search::default()
                    };
                    let found = client.search(&s).expect("search");
                    assert_eq!(found.queries[0].hits.len(), 10);
                    found
                });
            });
        }
    }
    g.finish();
}

/// Building an index of each kind from nothing, until everything is in it.
fn builds(c: &mut Criterion) {
    let mut g = c.benchmark_group("build 2,000 × 384");
    g.sample_size(10);
    let host = host();
    let (dim, base) = sample("sample.base.npy");
    g.throughput(Throughput::Elements((base.len() / dim) as u64));
    for kind in IndexKind::ALL.iter().copied() {
        let dir = Files::new(&host).mkdir(format!("/{kind}").as_bytes(), 0o755).expect("mkdir").ino;
        let mut client = Client::new(Dir(host.clone(), dir));
        g.bench_function(kind.name(), |b| {
            b.iter(|| {
                client.create(&Schema::new(dim as u32, Metric::Cosine, kind)).expect("create");
                client.insert(&Insert { dim: dim as u32, vectors: &base, ..Insert::default() }).expect("insert");
                settle(&mut client);
                client.drop_collection().expect("drop");
            });
        });
    }
    g.finish();
}

fn tree(c: &mut Criterion) {
    let mut g = c.benchmark_group("tree");
    let host = host();
    let make = |dir, name: String, mode| match host.call(Op::Make {
        dir,
        name: name.into_bytes(),
        mode,
        uid: 0,
        gid: 0,
        rdev: 0,
    }) {
        Ok(Reply::Attr(a)) => a.ino,
        r => panic!("{r:?}"),
    };
    let dir = make(ROOT, "dir".into(), 0o040755);
    for i in 0..10_000 {
        make(dir, format!("file {i}"), 0o100644);
    }
    let mut i = 0u64;
    g.bench_function("look up one of 10,000 names", |b| {
        b.iter(|| {
            i = (i + 7919) % 10_000;
            host.call(Op::Lookup { dir, name: format!("file {i}").into_bytes() }).expect("lookup")
        });
    });
    g.bench_function("list 100 of 10,000 names with attributes", |b| {
        b.iter(|| host.call(Op::ReadDir { dir, cookie: 0, max: 100 * 40, attrs: true }).expect("readdir"));
    });
    let mut n = 0u64;
    g.bench_function("create and unlink a file", |b| {
        b.iter(|| {
            n += 1;
            let name = format!("new {n}");
            make(dir, name.clone(), 0o100644);
            host.call(Op::Unlink { dir, name: name.into_bytes() }).expect("unlink")
        });
    });
    g.finish();
}

criterion_group!(benches, distances, filters, searches, builds, tree);
criterion_main!(benches);

// SPDX-License-Identifier: GPL-2.0-only
//! One engine of the comparison that bench/peers drives: answers requests about one collection, a line of JSON each.
//! The loops that are timed run here, over the library, as the other engines' loops run over theirs.

use crate::vectors::{load, Vectors};
use serde::Deserialize;
use serde_json::{json, Value};
use std::ffi::OsStr;
use std::io::{BufRead, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vexfs_cli::fail;
use vexfs_cli::fail::{code, Done, Failure};
use vexfs_cli::place::{self, volume_error, Place};
use vexfs_client::{Client, ControlFile, IndexKind, Insert, Metric, Schema, Search, Transport};
use vexfs_core::op::{Cred, Ino, Op, Reply};
use vexfs_embedded::{Files, Host};

/// What is compared.
#[derive(clap::Args, Debug, Clone)]
pub struct PeerArgs {
    /// The vectors: .npy file
    #[arg(long, value_name = "FILE.npy")]
    pub data: PathBuf,
    /// The queries: .npy file
    #[arg(long, value_name = "FILE.npy")]
    pub queries: PathBuf,
    /// Metric: l2, cosine or ip
    #[arg(long)]
    pub metric: Metric,
    /// Index kind: flat, hnsw, ivf, pq or lsh
    #[arg(long)]
    pub index: IndexKind,
    /// pq: bits for a subvector, 4 or 8; lsh: bits for a table (0: the default)
    #[arg(long, default_value_t = 0)]
    pub bits: u32,
    /// Results of a query
    #[arg(short, long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    pub k: u32,
}

/// A request.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase", deny_unknown_fields)]
enum Ask {
    /// Makes the collection and fills it durably, `batch` records a request.
    Build { batch: usize },
    /// All queries once; the ids of what is found.
    Found { effort: u32, batch: usize },
    /// Searches for at least `least` seconds, but no further round of the queries and no more than about `most`.
    Search { effort: u32, batch: usize, least: f64, most: f64 },
    /// The same in a collection of `k` records: what a call costs by itself.
    Trivial { least: f64 },
    /// Durable inserts, one record a request, into a collection of their own.
    One { count: usize },
    /// Appends of a vector to an ordinary file, each with an fdatasync: what the disk gives.
    Append { count: usize, file: PathBuf },
    /// Memory and space that the collection takes.
    Size,
    /// Closes the volume, takes its image out of the page cache, and opens it until the first answer.
    Reopen,
}

struct Direct(Arc<Host>, Ino);

impl Transport for Direct {
    fn call(&mut self, frame: Vec<u8>) -> std::io::Result<Vec<u8>> {
        self.0.request(self.1, Cred::default(), frame).map_err(|e| std::io::Error::from_raw_os_error(e.errno()))
    }
}

type Door = Client<Box<dyn Transport>>;

/// The volume, in-process or mounted.
enum Volume {
    Inside { target: PathBuf, path: Vec<u8>, host: Arc<Host> },
    Mounted(PathBuf),
}

impl Volume {
    fn open(path: &OsStr) -> Done<Volume> {
        match Place::of(path) {
            Place::Mounted(path) => Ok(Volume::Mounted(path)),
            Place::Inside { target, path } => {
                let host = Arc::new(place::open_to_write(&target)?);
                Ok(Volume::Inside { target, path, host })
            }
        }
    }

    /// A session with the directory whose name is that of the measurement and `suffix`; made if it is not there.
    fn door(&self, suffix: &str) -> Done<Door> {
        let transport: Box<dyn Transport> = match self {
            Volume::Inside { path, host, .. } => {
                let path = [path.as_slice(), suffix.as_bytes()].concat();
                let shown = String::from_utf8_lossy(&path).into_owned();
                let dir = Files::new(host).mkdir_all(&path, 0o755).map_err(|e| volume_error(shown, e))?;
                Box::new(Direct(host.clone(), dir.ino))
            }
            Volume::Mounted(path) => {
                let mut name = path.clone().into_os_string();
                name.push(suffix);
                let io = |e| Failure::io(Path::new(&name).display(), &e);
                std::fs::create_dir_all(&name).map_err(io)?;
                Box::new(ControlFile::open(&name).map_err(io)?)
            }
        };
        Ok(Client::new(transport))
    }

    /// Bytes in use.
    fn used(&self) -> Done<u64> {
        match self {
            Volume::Inside { target, host, .. } => {
                let bad = |e| volume_error(target.display(), e);
                host.call(Op::Checkpoint).map_err(bad)?;
                match host.call(Op::StatFs).map_err(bad)? {
                    Reply::StatFs(s) => Ok((s.blocks - s.free) * vexfs_core::format::BLOCK as u64),
                    r => fail!(code::FAILED, "{}: an unexpected reply: {r:?}", target.display()),
                }
            }
            Volume::Mounted(path) => {
                let above = path.parent().unwrap_or(path);
                let io = |e| Failure::io(above.display(), &e);
                let name = std::ffi::CString::new(above.as_os_str().as_bytes())
                    .map_err(|_| Failure::new(code::USAGE, "a path has a zero byte"))?;
                // SAFETY: all zeros is a valid value of this structure of numbers.
                let mut s: libc::statvfs = unsafe { std::mem::zeroed() };
                // SAFETY: a string that ends with zero, and a place for the result.
                if unsafe { libc::statvfs(name.as_ptr(), &mut s) } != 0 {
                    return Err(io(std::io::Error::last_os_error()));
                }
                Ok((s.f_blocks - s.f_bfree) * s.f_frsize)
            }
        }
    }
}

/// Seconds of a clock.
pub(crate) fn clock(id: libc::clockid_t) -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a place for the result; both clocks that are asked for exist on every Linux.
    unsafe { libc::clock_gettime(id, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// Wall time, and processor time of this thread and of the process.
struct Stopwatch(Instant, f64, f64);

impl Stopwatch {
    fn start() -> Stopwatch {
        Stopwatch(Instant::now(), clock(libc::CLOCK_THREAD_CPUTIME_ID), clock(libc::CLOCK_PROCESS_CPUTIME_ID))
    }

    fn stop(self, count: usize) -> Value {
        let wall = self.0.elapsed().as_secs_f64();
        json!({
            "count": count,
            "seconds": wall,
            "thread_cpu": clock(libc::CLOCK_THREAD_CPUTIME_ID) - self.1,
            "cpu": clock(libc::CLOCK_PROCESS_CPUTIME_ID) - self.2,
        })
    }
}

/// Memory of this process that is backed by no file, after what was freed has been given back.
fn memory() -> u64 {
    #[cfg(target_env = "gnu")]
    // SAFETY: gives back what is free and has no other effect.
    unsafe {
        libc::malloc_trim(0);
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:")).unwrap_or("");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

struct Peer<'a> {
    args: &'a PeerArgs,
    base: Vectors,
    queries: Vectors,
    /// `None` only while it is opened anew.
    volume: Option<Volume>,
    door: Option<Door>,
    memory_before: u64,
    used_before: u64,
    memory_after: u64,
}

fn bad(e: vexfs_client::Error) -> Failure {
    Failure::new(code::FAILED, e.to_string())
}

impl Peer<'_> {
    fn volume(&self) -> Done<&Volume> {
        self.volume.as_ref().ok_or_else(|| Failure::new(code::FAILED, "the volume is not open"))
    }

    fn door(&mut self) -> Done<&mut Door> {
        self.door.as_mut().ok_or_else(|| Failure::new(code::USAGE, "there is no collection yet: build first"))
    }

    fn schema(&self) -> Schema {
        let mut s = Schema::new(self.base.dim, self.args.metric, self.args.index);
        s.params.seed = 1;
        s.params.bits = self.args.bits;
        s
    }

    fn fresh(&self, suffix: &str) -> Done<Door> {
        let mut door = self.volume()?.door(suffix)?;
        if door.info().is_ok() {
            door.drop_collection().map_err(bad)?;
        }
        door.create(&self.schema()).map_err(bad)?;
        Ok(door)
    }

    fn build(&mut self, batch: usize) -> Done<Value> {
        let mut door = self.fresh("")?;
        self.used_before = self.volume()?.used()?;
        self.memory_before = memory();
        let dim = self.base.dim;
        let n = self.base.len();
        let (acknowledged, indexed) = (Stopwatch::start(), Stopwatch::start());
        for vectors in self.base.words.chunks(batch.max(1) * dim as usize) {
            door.insert(&Insert { dim, vectors, durable: true, ..Insert::default() }).map_err(bad)?;
        }
        let acknowledged = acknowledged.stop(n);
        settle(&mut door)?;
        let indexed = indexed.stop(n);
        let info = door.info().map_err(bad)?;
        let p = info.schema.params;
        let params = json!({
            "m": p.m, "ef_construction": p.ef_construction, "lists": p.lists, "subvectors": p.subvectors,
            "bits": p.bits, "tables": p.tables,
        });
        self.memory_after = memory();
        self.door = Some(door);
        Ok(json!({"acknowledged": acknowledged, "indexed": indexed, "params": params}))
    }

    fn search<'q>(&self, effort: u32, queries: &'q [f32]) -> Search<'q> {
        let of = |kind| if self.args.index == kind { effort } else { 0 };
        let rerank = of(IndexKind::Pq).max(of(IndexKind::Lsh));
        let (ef, nprobe) = (of(IndexKind::Hnsw), of(IndexKind::Ivf));
        Search { dim: self.base.dim, queries, k: self.args.k, ef, nprobe, rerank, ..Search::default() }
    }

    fn found(&mut self, effort: u32, batch: usize) -> Done<Value> {
        let mut door = self.door.take().ok_or_else(|| Failure::new(code::USAGE, "build first"))?;
        let mut ids = Vec::new();
        let mut evaluations = 0;
        for part in self.queries.words.chunks(batch.max(1) * self.base.dim as usize) {
            let found = door.search(&self.search(effort, part)).map_err(bad)?;
            evaluations += found.evaluations;
            ids.extend(found.queries.iter().map(|q| q.hits.iter().map(|h| h.id).collect::<Vec<_>>()));
        }
        self.door = Some(door);
        Ok(json!({"ids": ids, "evaluations": evaluations as f64 / self.queries.len().max(1) as f64}))
    }

    fn timed(&self, door: &mut Door, effort: u32, batch: usize, least: f64, most: f64) -> Done<Value> {
        let mut count = 0;
        let watch = Stopwatch::start();
        let start = Instant::now();
        let past = |s: f64| start.elapsed().as_secs_f64() >= s;
        'all: while count == 0 || !past(least) {
            for part in self.queries.words.chunks(batch.max(1) * self.base.dim as usize) {
                let found = door.search(&self.search(effort, part)).map_err(bad)?;
                count += found.queries.len();
                if past(most) {
                    break 'all;
                }
            }
        }
        Ok(watch.stop(count))
    }

    fn trivial(&self, least: f64) -> Done<Value> {
        let mut door = self.fresh("-trivial")?;
        let some = self.args.k as usize * self.base.dim as usize;
        let vectors = self.base.words.get(..some).unwrap_or(&self.base.words);
        door.insert(&Insert { dim: self.base.dim, vectors, ..Insert::default() }).map_err(bad)?;
        settle(&mut door)?;
        let out = self.timed(&mut door, 0, 1, least, least)?;
        door.drop_collection().map_err(bad)?;
        Ok(out)
    }

    fn one(&self, count: usize) -> Done<Value> {
        let mut door = self.fresh("-one")?;
        let dim = self.base.dim;
        let count = count.min(self.base.len());
        let watch = Stopwatch::start();
        for vectors in self.base.words.chunks(dim as usize).take(count) {
            door.insert(&Insert { dim, vectors, durable: true, ..Insert::default() }).map_err(bad)?;
        }
        let out = watch.stop(count);
        settle(&mut door)?;
        door.drop_collection().map_err(bad)?;
        Ok(out)
    }

    fn append(&self, count: usize, file: &Path) -> Done<Value> {
        let io = |e| Failure::io(file.display(), &e);
        let count = count.min(self.base.len());
        let mut f = std::fs::File::create(file).map_err(io)?;
        let watch = Stopwatch::start();
        for i in 0..count {
            let bytes: Vec<u8> = self.base.row(i).iter().flat_map(|x| x.to_le_bytes()).collect();
            f.write_all(&bytes).and_then(|()| f.sync_data()).map_err(io)?;
        }
        let out = watch.stop(count);
        std::fs::remove_file(file).map_err(io)?;
        Ok(out)
    }

    fn size(&mut self) -> Done<Value> {
        self.door()?.sync().map_err(bad)?;
        let disk = self.volume()?.used()?.saturating_sub(self.used_before);
        let info = self.door()?.info().map_err(bad)?;
        let inside = matches!(self.volume()?, Volume::Inside { .. });
        let memory = self.memory_after.saturating_sub(self.memory_before);
        Ok(json!({
            // Through a mount it is the daemon's memory.
            "memory": if inside { json!(memory) } else { Value::Null },
            "disk": disk,
            "index": info.index_bytes,
        }))
    }

    fn reopen(&mut self) -> Done<Value> {
        self.door = None;
        let Some(Volume::Inside { target, path, host }) = self.volume.take() else {
            fail!(code::USAGE, "only a volume that is opened in-process can be opened anew");
        };
        match Arc::try_unwrap(host) {
            Ok(host) => place::close(&target, host)?,
            Err(_) => fail!(code::FAILED, "{}: still in use", target.display()),
        }
        forget(&target)?;
        let before = memory();
        let watch = Stopwatch::start();
        let host = Arc::new(place::open_to_write(&target)?);
        let opened = watch.0.elapsed().as_secs_f64();
        let volume = Volume::Inside { target, path, host };
        let mut door = volume.door("")?;
        let first = self.queries.words.get(..self.base.dim as usize).unwrap_or_default();
        let found = door.search(&self.search(0, first)).map_err(bad)?;
        let mut out = watch.stop(found.queries.len());
        out["open"] = json!(opened);
        out["memory"] = json!(memory().saturating_sub(before));
        self.volume = Some(volume);
        self.door = Some(door);
        Ok(out)
    }
}

/// Takes a file out of the page cache.
fn forget(file: &Path) -> Done {
    let io = |e| Failure::io(file.display(), &e);
    let f = std::fs::File::open(file).map_err(io)?;
    f.sync_all().map_err(io)?;
    // SAFETY: a descriptor of our own.
    match unsafe { libc::posix_fadvise(f.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
        0 => Ok(()),
        e => Err(io(std::io::Error::from_raw_os_error(e))),
    }
}

/// Waits until everything is in the index.
fn settle(door: &mut Door) -> Done {
    loop {
        let info = door.info().map_err(bad)?;
        if info.pending == 0 && !info.catching_up && !info.populating {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Answers requests until there are no more.
pub fn serve(path: &OsStr, args: &PeerArgs) -> Done {
    let (base, queries) = (load(&args.data)?, load(&args.queries)?);
    if base.dim != queries.dim || base.len() == 0 || queries.len() == 0 {
        fail!(code::USAGE, "the queries have dimension {}, the data has {}", queries.dim, base.dim);
    }
    let volume = Some(Volume::open(path)?);
    let mut peer = Peer { args, base, queries, volume, door: None, memory_before: 0, used_before: 0, memory_after: 0 };
    let stdin = std::io::stdin();
    for line in stdin.lock().lines() {
        let line = line.map_err(|e| Failure::io("standard input", &e))?;
        let ask = serde_json::from_str(&line).map_err(|e| Failure::new(code::USAGE, format!("request {line}: {e}")))?;
        let reply = match ask {
            Ask::Build { batch } => peer.build(batch)?,
            Ask::Found { effort, batch } => peer.found(effort, batch)?,
            Ask::Search { effort, batch, least, most } => {
                let mut door = peer.door.take().ok_or_else(|| Failure::new(code::USAGE, "build first"))?;
                let out = peer.timed(&mut door, effort, batch, least, most)?;
                peer.door = Some(door);
                out
            }
            Ask::Trivial { least } => peer.trivial(least)?,
            Ask::One { count } => peer.one(count)?,
            Ask::Append { count, file } => peer.append(count, &file)?,
            Ask::Size => peer.size()?,
            Ask::Reopen => peer.reopen()?,
        };
        println!("{reply}");
    }
    peer.door = None;
    match peer.volume {
        Some(Volume::Inside { target, host, .. }) => match Arc::try_unwrap(host) {
            Ok(host) => place::close(&target, host),
            Err(_) => Ok(()),
        },
        _ => Ok(()),
    }
}

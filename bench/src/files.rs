// SPDX-License-Identifier: GPL-2.0-only
//! File operations on any directory, so that other filesystems are measured by the same code in the same run, and
//! inside a volume that is opened in-process.

use crate::raw::Row;
use crate::{Common, Measured};
use serde_json::{json, Map};
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Instant;
use vexfs_cli::fail::{Done, Failure};
use vexfs_cli::place::{self, Place};
use vexfs_core::op::{Ino, Op, Reply};
use vexfs_embedded::{Files, Host};

/// Bytes of a write or read of the sequential part.
const CHUNK: usize = 1 << 20;

/// Where files are made.
trait Target {
    fn create(&mut self, name: &str) -> Done;
    fn unlink(&mut self, name: &str) -> Done;
    /// Makes a file with these bytes and waits until it is durable.
    fn write_durable(&mut self, name: &str, bytes: &[u8]) -> Done;
    /// Writes `chunks` chunks in order, and waits until they are durable.
    fn write_all(&mut self, name: &str, chunk: &[u8], chunks: usize) -> Done;
    /// Asks for the file to be read from the device the next time, where that can be asked for.
    fn forget(&mut self, name: &str) -> Done;
    /// Reads a file in order; how many bytes it has.
    fn read_all(&mut self, name: &str) -> Done<u64>;
    fn close(self: Box<Self>) -> Done;
}

struct Directory(PathBuf);

impl Directory {
    fn open(&self, name: &str, options: &OpenOptions) -> Done<File> {
        let path = self.0.join(name);
        options.open(&path).map_err(|e| Failure::io(path.display(), &e))
    }

    fn io<T>(&self, r: std::io::Result<T>) -> Done<T> {
        r.map_err(|e| Failure::io(self.0.display(), &e))
    }
}

impl Target for Directory {
    fn create(&mut self, name: &str) -> Done {
        self.open(name, OpenOptions::new().write(true).create_new(true)).map(drop)
    }

    fn unlink(&mut self, name: &str) -> Done {
        self.io(std::fs::remove_file(self.0.join(name)))
    }

    fn write_durable(&mut self, name: &str, bytes: &[u8]) -> Done {
        let mut f = self.open(name, OpenOptions::new().write(true).create_new(true))?;
        self.io(f.write_all(bytes).and_then(|()| f.sync_all()))
    }

    fn write_all(&mut self, name: &str, chunk: &[u8], chunks: usize) -> Done {
        let mut f = self.open(name, OpenOptions::new().write(true).create_new(true))?;
        for _ in 0..chunks {
            self.io(f.write_all(chunk))?;
        }
        self.io(f.sync_all())
    }

    fn forget(&mut self, name: &str) -> Done {
        let f = self.open(name, OpenOptions::new().read(true))?;
        // SAFETY: a valid descriptor and no memory of ours.
        unsafe { libc::posix_fadvise(f.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
        Ok(())
    }

    fn read_all(&mut self, name: &str) -> Done<u64> {
        let mut f = self.open(name, OpenOptions::new().read(true))?;
        let mut buf = vec![0; CHUNK];
        let mut n = 0;
        loop {
            match self.io(f.read(&mut buf))? {
                0 => return Ok(n),
                k => n += k as u64,
            }
        }
    }

    fn close(self: Box<Self>) -> Done {
        Ok(())
    }
}

/// A directory of a volume in this process.
struct Inside {
    target: PathBuf,
    host: Host,
    dir: Ino,
    path: Vec<u8>,
}

impl Inside {
    fn path(&self, name: &str) -> Vec<u8> {
        [&self.path[..], b"/", name.as_bytes()].concat()
    }

    fn ok<T>(&self, r: Result<T, vexfs_core::Error>) -> Done<T> {
        r.map_err(|e| place::volume_error(self.target.display(), e))
    }

    fn make(&self, name: &str) -> Done<Ino> {
        let op = Op::Make { dir: self.dir, name: name.into(), mode: libc::S_IFREG | 0o644, uid: 0, gid: 0, rdev: 0 };
        match self.ok(self.host.call(op))? {
            Reply::Attr(a) => Ok(a.ino),
            _ => self.ok(Err(vexfs_core::Error::Corrupt)),
        }
    }
}

impl Target for Inside {
    fn create(&mut self, name: &str) -> Done {
        self.make(name).map(drop)
    }

    fn unlink(&mut self, name: &str) -> Done {
        self.ok(self.host.call(Op::Unlink { dir: self.dir, name: name.into() })).map(drop)
    }

    fn write_durable(&mut self, name: &str, bytes: &[u8]) -> Done {
        self.write_all(name, bytes, 1)
    }

    fn write_all(&mut self, name: &str, chunk: &[u8], chunks: usize) -> Done {
        let ino = self.make(name)?;
        let files = Files::new(&self.host);
        for i in 0..chunks {
            self.ok(files.write_at(ino, (i * chunk.len()) as u64, chunk))?;
        }
        self.ok(files.sync())
    }

    fn forget(&mut self, _name: &str) -> Done {
        Ok(()) // file contents are not cached in-process, but for the page cache of the image
    }

    fn read_all(&mut self, name: &str) -> Done<u64> {
        let files = Files::new(&self.host);
        let a = self.ok(files.resolve(&self.path(name), false))?;
        let mut n = 0;
        while n < a.size {
            n += self.ok(files.read_at(a.ino, n, CHUNK))?.len() as u64;
        }
        Ok(n)
    }

    fn close(self: Box<Self>) -> Done {
        place::close(&self.target, self.host)
    }
}

fn open(path: &OsStr) -> Done<Box<dyn Target>> {
    match Place::of(path) {
        Place::Mounted(path) => {
            std::fs::create_dir_all(&path).map_err(|e| Failure::io(path.display(), &e))?;
            Ok(Box::new(Directory(path)))
        }
        Place::Inside { target, path } => {
            let host = place::open_to_write(&target)?;
            let files = Files::new(&host);
            let attr = files.mkdir_all(&path, 0o755).map_err(|e| place::volume_error(target.display(), e))?;
            let dir = attr.ino;
            Ok(Box::new(Inside { target, host, dir, path }))
        }
    }
}

/// Creates and unlinks per second, durable small files per second, and sequential megabytes per second.
pub fn files(path: &OsStr, count: usize, mib: usize, common: &Common) -> Done<Vec<Row>> {
    let mut t = open(path)?;
    let names: Vec<String> = (0..count).map(|i| format!("vexfs-bench-{i:06}")).collect();
    let small: Vec<String> = (0..common.requests.min(count)).map(|i| format!("vexfs-bench-small-{i:06}")).collect();
    let large = "vexfs-bench-large";
    // Bytes that a compressing device cannot make shorter.
    let mut x = 1u64;
    let chunk: Vec<u8> = (0..CHUNK)
        .map(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 56) as u8
        })
        .collect();
    let what = ["create", "unlink", "write 4 KiB and fsync", "sequential write and fsync", "sequential read"];
    let mut measured: [Measured; 5] = std::array::from_fn(|_| Measured::default());
    for run in 0..common.warmups + common.runs {
        let warm = run < common.warmups;
        let each = |m: &mut Measured, names: &[String], f: &mut dyn FnMut(&str) -> Done| -> Done {
            let mut latencies = Vec::with_capacity(names.len());
            let start = Instant::now();
            for n in names {
                let t = Instant::now();
                f(n)?;
                latencies.push(t.elapsed().as_secs_f64() * 1e6);
            }
            m.add(warm, names.len() as f64 / start.elapsed().as_secs_f64(), latencies);
            Ok(())
        };
        let [create, unlink, sync, write, read] = &mut measured;
        each(create, &names, &mut |n| t.create(n))?;
        each(unlink, &names, &mut |n| t.unlink(n))?;
        each(sync, &small, &mut |n| t.write_durable(n, &chunk[..4096]))?;
        for n in &small {
            t.unlink(n)?;
        }
        let start = Instant::now();
        t.write_all(large, &chunk, mib)?;
        write.add(warm, (mib * CHUNK) as f64 / 1e6 / start.elapsed().as_secs_f64(), Vec::new());
        t.forget(large)?;
        let start = Instant::now();
        let n = t.read_all(large)?;
        read.add(warm, n as f64 / 1e6 / start.elapsed().as_secs_f64(), Vec::new());
        t.unlink(large)?;
    }
    t.close()?;
    let rows = what.iter().zip(measured).enumerate().map(|(i, (what, m))| {
        let mut params = Map::new();
        match i {
            0 | 1 => params.insert("files".into(), json!(count)),
            2 => params.insert("files".into(), json!(small.len())),
            _ => params.insert("MiB".into(), json!(mib)),
        };
        common.row(what, path, params, if i < 3 { "/s" } else { "MB/s" }, m)
    });
    Ok(rows.collect())
}

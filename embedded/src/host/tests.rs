// SPDX-License-Identifier: GPL-2.0-only
//! Group commit in every order that threads can take: the real host and the real core over a disk with a volatile cache.
//! What one of two threads was told to be durable is looked for at that very moment in what a power cut would leave.

use super::*;
use crate::device::{Device, MemDevice};
use crate::make::{make, MakeOptions};
use crate::sync::model;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex as StdMutex, OnceLock};

const BYTES: u64 = VOLUME_MIN * BLOCK as u64;

/// An empty volume, made once.
fn image() -> &'static MemDevice {
    static IMAGE: OnceLock<MemDevice> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let device = MemDevice::new(vec![0; BYTES as usize]);
        make(&device, &MakeOptions { uuid: Some([7; 16]), ..MakeOptions::default() }).unwrap();
        device
    })
}

/// The image with what was written to it since: what is durable, and what a power cut takes away. Its lock is no part of
/// the orders that are tried: nothing waits while it is held.
#[derive(Default)]
struct Layers {
    durable: BTreeMap<u64, Vec<u8>>,
    cached: BTreeMap<u64, Vec<u8>>,
}

#[derive(Clone, Default)]
struct Disk {
    layers: std::sync::Arc<StdMutex<Layers>>,
    /// A device that says it has flushed and has not.
    forgets: bool,
}

impl Disk {
    fn with<T>(&self, f: impl FnOnce(&mut Layers) -> T) -> T {
        f(&mut self.layers.lock().unwrap())
    }

    fn put(layer: &mut BTreeMap<u64, Vec<u8>>, offset: u64, data: &[u8]) {
        for (i, block) in data.chunks(BLOCK).enumerate() {
            layer.insert(offset / BLOCK as u64 + i as u64, block.to_vec());
        }
    }

    /// What a power cut leaves.
    fn cut(&self) -> Disk {
        let durable = self.with(|l| l.durable.clone());
        Disk { layers: std::sync::Arc::new(StdMutex::new(Layers { durable, ..Layers::default() })), forgets: false }
    }
}

impl Device for Disk {
    fn len(&self) -> u64 {
        BYTES
    }
    fn read_only(&self) -> bool {
        false
    }
    fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        image().read_at(offset, buf)?;
        self.with(|l| {
            for (i, block) in buf.chunks_mut(BLOCK).enumerate() {
                let at = offset / BLOCK as u64 + i as u64;
                if let Some(data) = l.cached.get(&at).or_else(|| l.durable.get(&at)) {
                    block.copy_from_slice(data);
                }
            }
        });
        Ok(())
    }
    fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|l| Disk::put(&mut l.cached, offset, data));
        Ok(())
    }
    fn write_durable_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|l| {
            Disk::put(&mut l.cached, offset, data);
            Disk::put(&mut l.durable, offset, data);
        });
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        // The device has what was written before; others may write and flush meanwhile.
        let cached = self.with(|l| l.cached.clone());
        thread::yield_now();
        if !self.forgets {
            self.with(|l| l.durable.extend(cached));
        }
        Ok(())
    }
}

/// Whether the root directory of the volume on `disk` has the name, as the core alone finds it.
fn has(disk: &Disk, name: &[u8]) -> bool {
    let options = HostOptions { cache_bytes: 1 << 20, ..HostOptions::default() };
    let mut volume = Volume::open(crate::env(&options), BYTES / BLOCK as u64, Options::default(), now()).unwrap();
    let mut asked = None;
    for _ in 0..10_000 {
        while let Some(mut io) = volume.poll_io() {
            let at = io.block * BLOCK as u64;
            let done = match io.kind {
                IoKind::Read => disk.read_at(at, &mut io.buf),
                IoKind::Write => disk.write_at(at, &io.buf),
                IoKind::WriteDurable => disk.write_durable_at(at, &io.buf),
                IoKind::Flush => disk.flush(),
                IoKind::Discard => Ok(()),
            };
            volume.complete(now(), io.id, done.map_err(|_| IoError), io.buf);
        }
        if let Some((id, reply)) = volume.poll_reply() {
            if Some(id) == asked {
                return reply.is_ok();
            }
        }
        if let State::Failed(_) = volume.state() {
            return false;
        }
        if volume.state() == State::Ready && asked.is_none() {
            asked = Some(volume.submit(now(), Op::Lookup { dir: vexfs_core::op::ROOT, name: name.to_vec() }).unwrap());
        }
        volume.work();
    }
    panic!("the volume does not come up after a power cut");
}

/// Makes a file and syncs; says whether it is there after a power cut now.
fn durable(shared: &Shared, disk: &Disk, name: &[u8]) -> bool {
    let (name, dir) = (name.to_vec(), vexfs_core::op::ROOT);
    shared.call(Op::Make { dir, name: name.clone(), mode: 0o100_644, uid: 0, gid: 0, rdev: 0 }).unwrap();
    shared.call(Op::Sync).unwrap();
    has(&disk.cut(), &name)
}

/// Two threads make a file each and sync, with one helper that carries out what they leave over.
fn two_at_once(disk: &Disk) -> (bool, bool) {
    let options = HostOptions { cache_bytes: 1 << 20, ..HostOptions::default() };
    let shared = Shared::open(Box::new(disk.clone()), "disk", &options).unwrap();
    let threads: Vec<_> = [b"a", b"b"]
        .map(|name| {
            let (shared, disk) = (shared.clone(), disk.clone());
            thread::spawn(move || durable(&shared, &disk, name))
        })
        .into_iter()
        .collect();
    let helper = {
        let shared = shared.clone();
        thread::spawn(move || shared.help())
    };
    let found: Vec<bool> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    shared.ready.close();
    helper.join().unwrap();
    (found[0], found[1])
}

#[test]
fn what_a_sync_says_is_durable_in_every_order() {
    // In a run of its own, for it is made only once.
    model(0, || assert_eq!(image().len(), BYTES));
    model(3, || assert_eq!(two_at_once(&Disk::default()), (true, true)));
}

/// The same test sees a disk that does not flush: it can fail.
#[test]
fn a_disk_that_forgets_is_noticed() {
    // In a run of its own, for it is made only once.
    model(0, || assert_eq!(image().len(), BYTES));
    model(0, || assert_ne!(two_at_once(&Disk { forgets: true, ..Disk::default() }), (true, true)));
}

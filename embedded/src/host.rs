// SPDX-License-Identifier: GPL-2.0-only
//! Drives a volume from many threads. [`Host::call`] answers reads under the shared side of a lock where
//! everything is in memory; for the rest the calling thread submits the operation and carries out I/O
//! itself, outside the lock, so that operations of many threads make progress side by side and share
//! log groups and flushes. Helper threads take what a caller leaves over; one more thread keeps time and
//! does background work in bounded steps.

mod alarm;
mod queue;
#[cfg(test)]
mod tests;
mod waiter;

use crate::device::{Access, Device, FileDevice};
use crate::error::{OpenError, OpenErrorKind};
use crate::now;
use crate::sync::atomic::{AtomicUsize, Ordering};
use crate::sync::{self, is_poisoned, locked, thread, Arc, LockResult, Mutex, RwLock, RwLockWriteGuard};
use alarm::Alarm;
use queue::Queue;
use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::sync::TryLockError;
use std::time::{Duration, Instant};

use vexfs_core::engine::{OpId, Options, State, Stats, Volume};
use vexfs_core::format::{BLOCK, VOLUME_MIN};
use vexfs_core::io::{Io, IoError, IoKind};
use vexfs_core::op::{Cred, Ino, Op, Reply, Time};
use vexfs_core::proto::{wire, Batch};
use vexfs_core::Error;
use waiter::Waiter as Waits;

/// How to run a volume.
#[derive(Clone, Debug)]
pub struct HostOptions {
    /// Never write, not even to recover.
    pub read_only: bool,
    /// Bytes that the caches of tree nodes and vectors may take: by default a quarter of the memory.
    pub cache_bytes: usize,
    /// Bytes of log after which a checkpoint is started.
    pub log_bytes: u64,
    /// Threads that carry out I/O which no caller takes.
    pub helpers: usize,
}

impl Default for HostOptions {
    fn default() -> HostOptions {
        HostOptions { read_only: false, cache_bytes: quarter_of_memory(), log_bytes: 64 << 20, helpers: 4 }
    }
}

/// A quarter of the machine's memory, or 256 MiB if it does not say.
fn quarter_of_memory() -> usize {
    // SAFETY: asks for two numbers.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    match (usize::try_from(pages), usize::try_from(size)) {
        (Ok(pages), Ok(size)) if pages > 0 => pages.saturating_mul(size / 4).max(16 << 20),
        _ => 256 << 20,
    }
}

/// A volume in service. Dropping it without [`Host::close`] leaves the volume as a crash would: nothing
/// acknowledged is lost, the next open replays the log.
pub struct Host {
    shared: Arc<Shared>,
    threads: Vec<thread::JoinHandle<()>>,
}

struct Shared {
    core: RwLock<Core>,
    device: Box<dyn Device>,
    /// I/O that waits for a helper.
    ready: Queue<Io>,
    /// Threads that wait for `core`; background work gives way to them.
    wanting: AtomicUsize,
    /// Held by the one thread that does background work.
    working: Mutex<()>,
    /// Wakes the background thread.
    alarm: Alarm,
    read_only: bool,
}

struct Core {
    volume: Volume,
    waiters: HashMap<u64, Arc<Waiter>>,
}

/// Where one thread waits for the reply of its operation.
type Waiter = Waits<Result<Reply, Error>>;

/// Most writes that a thread carries out between two looks at the volume.
const WRITE_BATCH: usize = 32;
/// Most reads; they may each wait for the device, so the others go to the helpers.
const READ_BATCH: usize = 2;
/// Most writes that a helper takes at once.
const HELPER_WRITES: usize = 8;
/// The background thread looks for work at most this often while it finds none.
const IDLE_PAUSE: Duration = Duration::from_millis(10);
/// Background work lets others at the lock for at most so long.
const GIVE_WAY: Duration = Duration::from_millis(20);

fn nanos(t: Time) -> u64 {
    u64::try_from(t.sec).unwrap_or(0).saturating_mul(1_000_000_000).saturating_add(u64::from(t.nsec))
}

impl Host {
    /// Opens the volume on an image file or block device. Where writing is forbidden it is opened
    /// read-only, which [`Host::read_only`] tells.
    pub fn open_path(path: impl AsRef<Path>, options: &HostOptions) -> Result<Host, OpenError> {
        let access = if options.read_only { Access::ReadOnly } else { Access::PreferWrite };
        let device = FileDevice::open(path.as_ref(), access)?;
        Host::open(Box::new(device), &path.as_ref().display().to_string(), options)
    }

    /// Opens the volume on `device`; `name` is for messages.
    pub fn open(device: Box<dyn Device>, name: &str, options: &HostOptions) -> Result<Host, OpenError> {
        let shared = Shared::open(device, name, options)?;
        let mut host = Host { shared, threads: Vec::new() };
        for i in 0..options.helpers.max(1) {
            host.spawn(name, &format!("vexfs-io-{i}"), Shared::help)?;
        }
        host.spawn(name, "vexfs-work", Shared::background)?;
        Ok(host)
    }

    fn spawn(&mut self, name: &str, called: &str, run: fn(&Shared)) -> Result<(), OpenError> {
        let shared = self.shared.clone();
        let handle = thread::Builder::new()
            .name(called.to_string())
            .spawn(move || run(&shared))
            .map_err(|e| OpenError::new(OpenErrorKind::Io, format!("{name}: cannot start a thread: {e}")))?;
        self.threads.push(handle);
        Ok(())
    }

    /// Carries out an operation and waits for its reply.
    pub fn call(&self, op: Op) -> Result<Reply, Error> {
        if op.is_read() {
            if let Some(reply) = self.try_call(&op) {
                return reply;
            }
        }
        self.shared.call(op)
    }

    /// The reply of a read if everything is in memory; never waits for a device.
    pub fn try_call(&self, op: &Op) -> Option<Result<Reply, Error>> {
        match self.shared.core.try_read() {
            Ok(core) => return core.volume.try_read(now(), op),
            Err(TryLockError::Poisoned(_)) => return Some(Err(Error::Aborted)),
            Err(TryLockError::WouldBlock) => {}
        }
        self.shared.wanting.fetch_add(1, Ordering::Relaxed);
        let core = self.shared.core.read();
        self.shared.wanting.fetch_sub(1, Ordering::Relaxed);
        match core {
            Ok(core) => core.volume.try_read(now(), op),
            Err(_) => Some(Err(Error::Aborted)),
        }
    }

    /// Sends one frame of the protocol to the directory `dir` and gives back the frame of the reply.
    pub fn request(&self, dir: Ino, cred: Cred, frame: Vec<u8>) -> Result<Vec<u8>, Error> {
        let head = frame.get(..wire::RequestHead::SIZE).unwrap_or_default().to_vec();
        let op = wire::RequestHead::parse(&head).unwrap_or_default().op;
        let reply = match Batch::of(&frame, cred.uid == 0) {
            Some(batch) => match self.search(dir, &cred, &batch) {
                Ok(None) => self.one_request(dir, cred, op, frame),
                other => other.map(Option::unwrap_or_default),
            },
            None => self.one_request(dir, cred, op, frame),
        };
        // What refuses the volume as a whole is an answer too.
        reply.or_else(|e| vexfs_core::coll::error_frame(&head, e, 0).map_err(Error::from))
    }

    fn one_request(&self, dir: Ino, cred: Cred, op: u16, frame: Vec<u8>) -> Result<Vec<u8>, Error> {
        let op = if wire::op::is_read(op) { Op::Query { dir, cred, frame } } else { Op::Request { dir, cred, frame } };
        match self.call(op)? {
            Reply::Bytes(b) => Ok(b),
            _ => Err(Error::Corrupt),
        }
    }

    /// Carries out the parts of a search on as many threads as there are processors.
    fn search(&self, dir: Ino, cred: &Cred, batch: &Batch) -> Result<Option<Vec<u8>>, Error> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(batch.parts());
        let next = AtomicUsize::new(0);
        let run = || {
            let mut done = Vec::new();
            loop {
                let i = next.fetch_add(1, Ordering::Relaxed);
                if i >= batch.parts() {
                    return Ok::<_, Error>(done);
                }
                let cred = Cred { uid: cred.uid, gid: cred.gid, groups: cred.groups.clone() };
                done.push((i, self.one_request(dir, cred, wire::op::SEARCH, batch.request(i)?)?));
            }
        };
        let mut parts = std::thread::scope(|scope| {
            let others: Vec<_> = (1..threads)
                .filter_map(|_| {
                    std::thread::Builder::new().name("vexfs-search".to_string()).spawn_scoped(scope, run).ok()
                })
                .collect();
            let mut all = run()?;
            for o in others {
                all.extend(o.join().map_err(|_| Error::Aborted)??);
            }
            Ok::<_, Error>(all)
        })?;
        parts.sort_unstable_by_key(|(i, _)| *i);
        batch.reply(&parts.into_iter().map(|(_, p)| p).collect::<Vec<_>>())
    }

    /// Clean unmount: writes a checkpoint and marks the volume clean. Operations after it fail.
    pub fn close(self) -> Result<(), Error> {
        self.shut()
    }

    /// As [`Host::close`], for a host that others still refer to.
    pub fn shut(&self) -> Result<(), Error> {
        self.call(Op::Close).map(|_| ())
    }

    /// Where the volume stands.
    pub fn state(&self) -> State {
        match self.shared.core.read() {
            Ok(core) => core.volume.state(),
            Err(_) => State::Aborted,
        }
    }

    /// Counters of the volume.
    pub fn stats(&self) -> Stats {
        match self.shared.core.read() {
            Ok(core) => core.volume.stats(),
            Err(_) => Stats::default(),
        }
    }

    /// Whether changes are refused.
    pub fn read_only(&self) -> bool {
        self.shared.read_only
    }

    /// Size of the device in bytes.
    pub fn device_len(&self) -> u64 {
        self.shared.device.len()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.shared.ready.close();
        self.shared.alarm.stop();
        for t in self.threads.drain(..) {
            let _ = t.join();
        }
    }
}

sync::thread_local! {
    // Loom's macro knows no `const` block.
    #[allow(clippy::missing_const_for_thread_local)]
    static WAITER: RefCell<Option<Arc<Waiter>>> = RefCell::new(None);
}

impl Shared {
    /// Opens the volume; nothing happens by itself yet.
    fn open(device: Box<dyn Device>, name: &str, options: &HostOptions) -> Result<Arc<Shared>, OpenError> {
        let bytes = device.len();
        if bytes == 0 {
            return Err(OpenError::new(
                OpenErrorKind::Empty,
                format!("{name}: the file is empty; make a volume in it: mkfs.vexfs -s SIZE {name}"),
            ));
        }
        let blocks = bytes / BLOCK as u64;
        if blocks < 2 {
            return Err(OpenError::new(
                OpenErrorKind::Empty,
                format!(
                    "{name}: {bytes} bytes are too few for a volume ({} MiB is the least); make one: mkfs.vexfs -s SIZE {name}",
                    (VOLUME_MIN * BLOCK as u64) >> 20
                ),
            ));
        }
        let read_only = options.read_only || device.read_only();
        let volume = Volume::open(crate::env(options), blocks, Options { read_only, ..Options::default() }, now())
            .map_err(|e| OpenError::from_core(name, e))?;
        let shared = Arc::new(Shared {
            core: RwLock::new(Core { volume, waiters: HashMap::new() }),
            device,
            ready: Queue::new(),
            wanting: AtomicUsize::new(0),
            working: Mutex::new(()),
            alarm: Alarm::new(),
            read_only,
        });
        shared.bring_up().map_err(|e| OpenError::from_core(name, e))?;
        Ok(shared)
    }

    /// Runs `f` under the exclusive side of the lock, then hands out replies and appends new I/O to `ios`.
    fn step<T>(&self, ios: &mut Vec<Io>, f: impl FnOnce(&mut Core) -> T) -> Result<T, Error> {
        let (out, timeout) = self.quiet_step(ios, f)?;
        self.alarm.nudge(timeout.map(nanos));
        Ok(out)
    }

    /// The same without waking the background thread; says when it wants to be woken.
    fn quiet_step<T>(&self, ios: &mut Vec<Io>, f: impl FnOnce(&mut Core) -> T) -> Result<(T, Option<Time>), Error> {
        self.wanting.fetch_add(1, Ordering::Relaxed);
        let core = self.core.write();
        self.wanting.fetch_sub(1, Ordering::Relaxed);
        self.locked_step(core, ios, f)
    }

    /// A step of background work: the same, but after those who wait for the lock.
    fn work(&self, ios: &mut Vec<Io>) -> Result<(bool, Option<Time>), Error> {
        // The lock is not fair, and this thread would have it again before another woke up. A limit, for
        // work has to go on under a stream of operations too.
        let end = Instant::now() + GIVE_WAY;
        while self.wanting.load(Ordering::Relaxed) > 0 && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(50));
        }
        self.locked_step(self.core.write(), ios, |core| {
            let now = now();
            if core.volume.poll_timeout().is_some_and(|t| t <= now) {
                core.volume.handle_timeout(now);
            }
            core.volume.work()
        })
    }

    fn locked_step<T>(
        &self,
        core: LockResult<RwLockWriteGuard<'_, Core>>,
        ios: &mut Vec<Io>,
        f: impl FnOnce(&mut Core) -> T,
    ) -> Result<(T, Option<Time>), Error> {
        let Ok(mut core) = core else {
            // A panic inside the core is a defect; what it left behind must not be written.
            return Err(Error::Aborted);
        };
        let out = f(&mut core);
        let mut answered: Vec<(Arc<Waiter>, Result<Reply, Error>)> = Vec::new();
        loop {
            let before = (ios.len(), answered.len());
            while let Some(io) = core.volume.poll_io() {
                ios.push(io);
            }
            while let Some((OpId(id), reply)) = core.volume.poll_reply() {
                if let Some(w) = core.waiters.remove(&id) {
                    answered.push((w, reply));
                }
            }
            if before == (ios.len(), answered.len()) {
                break;
            }
        }
        let timeout = core.volume.poll_timeout();
        drop(core);
        for (w, reply) in answered {
            w.answer(reply);
        }
        Ok((out, timeout))
    }

    fn call(&self, op: Op) -> Result<Reply, Error> {
        // Whoever waits for durability carries out flushes; others leave them to the helpers.
        let durable = matches!(op, Op::Sync | Op::Checkpoint | Op::Close);
        let search = matches!(op, Op::Query { .. });
        let waiter = WAITER.with(|w| w.borrow_mut().take()).unwrap_or_default();
        let mut ios = Vec::new();
        let w = waiter.clone();
        self.step(&mut ios, |core| {
            let OpId(id) = core.volume.submit(now(), op)?;
            core.waiters.insert(id, w);
            Ok::<(), Error>(())
        })??;
        let reply = self.pump(&waiter, ios, durable, search);
        WAITER.with(|w| *w.borrow_mut() = Some(waiter));
        reply
    }

    /// Carries out I/O until the reply is there.
    fn pump(&self, waiter: &Waiter, mut ios: Vec<Io>, durable: bool, search: bool) -> Result<Reply, Error> {
        loop {
            if let Some(reply) = waiter.take() {
                self.ready.push(&mut ios);
                return reply;
            }
            if !durable {
                self.leave_if(&mut ios, |io| matches!(io.kind, IoKind::Flush | IoKind::WriteDurable));
            }
            // A search may wait for the index: better to work on it than to wait for who does.
            if ios.is_empty() && search {
                let worked = match self.working.try_lock() {
                    Ok(_working) => self.work(&mut ios)?.0,
                    Err(_) => false,
                };
                if worked {
                    continue;
                }
            }
            if ios.is_empty() {
                if is_poisoned(&self.core) {
                    return Err(Error::Aborted);
                }
                // A search looks from time to time whether there is work left that nobody does.
                waiter.sleep(if search { IDLE_PAUSE } else { Duration::from_secs(1) });
                continue;
            }
            self.carry_out(&mut ios)?;
        }
    }

    /// Carries out a batch of `ios`, leaves what is over to the helpers, and takes what follows from it.
    fn carry_out(&self, ios: &mut Vec<Io>) -> Result<(), Error> {
        let mut reads = 0;
        let mut batch = Vec::new();
        self.leave_if(ios, |io| match io.kind {
            IoKind::Read => {
                reads += 1;
                reads > READ_BATCH
            }
            _ => false,
        });
        let n = ios.len().min(WRITE_BATCH);
        batch.extend(ios.drain(..n));
        self.ready.push(ios);
        let mut done = Vec::with_capacity(batch.len());
        for mut io in batch {
            let result = self.perform(&mut io);
            done.push((io.id, result, io.buf));
        }
        self.step(ios, |core| {
            let now = now();
            for (id, result, buf) in done {
                core.volume.complete(now, id, result, buf);
            }
        })
    }

    fn perform(&self, io: &mut Io) -> Result<(), IoError> {
        let offset = io.block.checked_mul(BLOCK as u64).ok_or(IoError)?;
        let r = match io.kind {
            IoKind::Read => self.device.read_at(offset, &mut io.buf),
            IoKind::Write => self.device.write_at(offset, &io.buf),
            IoKind::WriteDurable => self.device.write_durable_at(offset, &io.buf),
            IoKind::Flush => self.device.flush(),
            // A discard is a hint; that a device knows none is no error.
            IoKind::Discard => {
                let _ = self.device.discard(offset, io.count.saturating_mul(BLOCK as u64));
                Ok(())
            }
        };
        r.map_err(|_| IoError)
    }

    /// Leaves the I/O that `which` picks to the helpers.
    fn leave_if(&self, ios: &mut Vec<Io>, mut which: impl FnMut(&Io) -> bool) {
        let (mut left, kept): (Vec<Io>, Vec<Io>) = ios.drain(..).partition(|io| which(io));
        *ios = kept;
        self.ready.push(&mut left);
    }

    /// What a helper thread does.
    fn help(&self) {
        let mut ios: Vec<Io> = Vec::new();
        loop {
            if ios.is_empty() {
                // Writes only fill the page cache: a few at a time spare wake-ups.
                ios = self.ready.take(HELPER_WRITES - 1, |io| io.kind == IoKind::Write);
                if ios.is_empty() {
                    return;
                }
            }
            if self.carry_out(&mut ios).is_err() {
                return;
            }
        }
    }

    /// What the background thread does: time and work.
    fn background(&self) {
        let mut ios = Vec::new();
        while !self.alarm.stopped() {
            self.alarm.look();
            let working = locked(&self.working);
            let stepped = self.work(&mut ios);
            drop(working);
            let Ok((more, timeout)) = stepped else { return };
            let some = !ios.is_empty();
            if some && self.carry_out(&mut ios).is_err() {
                return;
            }
            // What was read may be what work waits for.
            if more || some {
                continue;
            }
            self.alarm.sleep(timeout.map_or(u64::MAX, nanos), IDLE_PAUSE, || nanos(now()));
        }
    }

    /// Opens the volume: carries out what it asks for until it is ready.
    fn bring_up(&self) -> Result<(), Error> {
        let mut ios = Vec::new();
        self.step(&mut ios, |_| ())?;
        loop {
            let state = self.step(&mut ios, |core| core.volume.state())?;
            match state {
                State::Ready => {}
                State::Opening => {}
                State::Failed(e) => return Err(e),
                State::Aborted | State::Closed => return Err(Error::Io),
            }
            if ios.is_empty() {
                if state == State::Ready {
                    return Ok(());
                }
                let worked = self.step(&mut ios, |core| {
                    core.volume.handle_timeout(now());
                    core.volume.work()
                })?;
                let waiting = self.step(&mut ios, |core| core.volume.state() == State::Opening)?;
                if ios.is_empty() && waiting && !worked {
                    // Nothing is under way and nothing more is asked for: it would wait for ever.
                    return Err(Error::Io);
                }
                continue;
            }
            // There are no helpers yet: all of it is this thread's.
            let batch = std::mem::take(&mut ios);
            let mut done = Vec::with_capacity(batch.len());
            for mut io in batch {
                let result = self.perform(&mut io);
                done.push((io.id, result, io.buf));
            }
            self.step(&mut ios, |core| {
                for (id, result, buf) in done {
                    core.volume.complete(now(), id, result, buf);
                }
            })?;
        }
    }
}

// SPDX-License-Identifier: GPL-2.0-only
//! The process around a mount: going to the background, signals, the committer, the clean end.

use crate::fs::{Fs, WRITE_MAX};
use crate::options::{Atime, MountOptions};
use crate::shared::Shared;
use fuser::{Config, MountOption, Session, SessionACL};
use std::ffi::{CString, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vexfs_core::engine::State;
use vexfs_core::op::Op;
use vexfs_embedded::testing::{settle, PowerCut};
use vexfs_embedded::{Access, Device, FileDevice, Host, HostOptions, OpenError, OpenErrorKind};

/// Changes are durable at the latest after this time.
const COMMIT_EVERY: Duration = Duration::from_millis(500);
/// How long the end waits for requests that are still being worked on.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// What to mount, where and how.
#[derive(Clone, Debug)]
pub struct MountConfig {
    /// Image file or block device.
    pub source: PathBuf,
    /// Directory.
    pub mountpoint: PathBuf,
    /// Options.
    pub options: MountOptions,
    /// Stay in the foreground; else [`mount`] returns when the mount is ready and a daemon serves it.
    pub foreground: bool,
}

/// Why mounting or unmounting failed: one line that names the cause and the fix.
#[derive(Debug)]
pub struct MountError {
    errno: i32,
    text: String,
}

impl MountError {
    fn new(text: impl Into<String>) -> MountError {
        MountError { errno: 0, text: text.into() }
    }

    fn with(self, errno: i32) -> MountError {
        MountError { errno, ..self }
    }

    /// The error number that says the same; 0 if there is none.
    pub fn errno(&self) -> i32 {
        self.errno
    }
}

impl fmt::Display for MountError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for MountError {}

impl From<OpenError> for MountError {
    fn from(e: OpenError) -> MountError {
        let errno = match e.kind() {
            OpenErrorKind::NotFound => libc::ENOENT,
            OpenErrorKind::Denied => libc::EACCES,
            OpenErrorKind::InUse => libc::EBUSY,
            OpenErrorKind::NotADevice => libc::EINVAL,
            OpenErrorKind::Damaged | OpenErrorKind::Truncated | OpenErrorKind::Empty => libc::EIO,
            _ => 0,
        };
        MountError::new(e.to_string()).with(errno)
    }
}

/// Mounts a volume. In the foreground it returns when the volume was unmounted and closed; else when
/// the mount is ready. Going to the background forks: call it while the process has one thread only.
pub fn mount(config: &MountConfig) -> Result<(), MountError> {
    if config.options.remount {
        return remount(config);
    }
    if config.foreground {
        return serve(config, Say { daemon: false }, |_| {});
    }
    let (mut reader, writer) = pipe().map_err(|e| MountError::new(format!("cannot make a pipe: {e}")))?;
    // SAFETY: the caller has one thread; the child goes on as a process of its own.
    match unsafe { libc::fork() } {
        -1 => Err(MountError::new(format!("cannot start the daemon: {}", io::Error::last_os_error()))),
        0 => {
            drop(reader);
            let code = daemon(config, writer);
            std::process::exit(code);
        }
        _ => {
            drop(writer);
            // The daemon says "+" when it is ready, or why it failed; nothing if it died.
            let mut answer = Vec::new();
            let _ = reader.read_to_end(&mut answer);
            match answer.split_first() {
                Some((b'+', warning)) => {
                    if !warning.is_empty() {
                        eprintln!("{}", String::from_utf8_lossy(warning));
                    }
                    Ok(())
                }
                Some((b'-', rest)) => {
                    // An error number, a space and the message.
                    let text = String::from_utf8_lossy(rest);
                    let (errno, text) = text.split_once(' ').unwrap_or(("0", &text));
                    Err(MountError::new(text).with(errno.parse().unwrap_or(0)))
                }
                _ => Err(MountError::new("the daemon ended before the volume was mounted; see the system log")),
            }
        }
    }
}

/// Changes the flags of a mount that exists (`mount -o remount,ro DIR`).
fn remount(config: &MountConfig) -> Result<(), MountError> {
    let o = &config.options;
    let mut flags = libc::MS_REMOUNT;
    for (on, flag) in [
        (o.read_only, libc::MS_RDONLY),
        (!o.dev, libc::MS_NODEV),
        (!o.suid, libc::MS_NOSUID),
        (!o.exec, libc::MS_NOEXEC),
        (o.sync, libc::MS_SYNCHRONOUS),
        (o.atime == Atime::Never, libc::MS_NOATIME),
        (o.atime == Atime::Always, libc::MS_STRICTATIME),
    ] {
        flags |= if on { flag } else { 0 };
    }
    let dir = config.mountpoint.display();
    let c = CString::new(config.mountpoint.as_os_str().as_bytes())
        .map_err(|_| MountError::new(format!("{dir}: not a path")))?;
    // FUSE gives a closed or removed file back a moment after close(2) and unlink(2) have returned.
    let end = Instant::now() + Duration::from_secs(2);
    loop {
        // SAFETY: a valid path; a remount needs no other string.
        if unsafe { libc::mount(std::ptr::null(), c.as_ptr(), std::ptr::null(), flags, std::ptr::null()) } == 0 {
            if flags & libc::MS_RDONLY == 0 && refuses_changes(&c) {
                // The kernel would let writers in, and the daemon refuse each of them.
                let back = flags | libc::MS_RDONLY;
                // SAFETY: as above.
                unsafe { libc::mount(std::ptr::null(), c.as_ptr(), std::ptr::null(), back, std::ptr::null()) };
                return Err(MountError::new(format!(
                    "{dir}: its image was opened read-only; to write, unmount it and mount it again"
                )));
            }
            return Ok(());
        }
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EBUSY) if Instant::now() < end => std::thread::sleep(Duration::from_millis(10)),
            Some(libc::EBUSY) => {
                return Err(MountError::new(format!(
                    "{dir}: files are open for writing, or removed and still open; see who: fuser -vm {dir}"
                )))
            }
            _ => return Err(MountError::new(format!("{dir}: cannot remount: {e}"))),
        }
    }
}

/// Whether the daemon of the mount refuses every change. Asked by removing an attribute that nobody has.
fn refuses_changes(dir: &std::ffi::CStr) -> bool {
    // SAFETY: two valid strings.
    let r = unsafe { libc::removexattr(dir.as_ptr(), c"user.vexfs.is-read-only".as_ptr()) };
    r != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EROFS)
}

fn pipe() -> io::Result<(File, File)> {
    let mut fds = [0; 2];
    // SAFETY: room for two descriptors; they are owned by the two files from here on.
    unsafe {
        if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC) != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok((File::from_raw_fd(fds[0]), File::from_raw_fd(fds[1])))
    }
}

/// What the child of [`mount`] does; gives back its exit code.
fn daemon(config: &MountConfig, writer: File) -> i32 {
    // SAFETY: a new session, so that the terminal's signals do not reach the daemon.
    unsafe { libc::setsid() };
    let mut writer = Some(writer);
    let result = serve(config, Say { daemon: true }, |warning| {
        detach();
        if let Some(mut w) = writer.take() {
            let _ = w.write_all(format!("+{}", warning.unwrap_or_default()).as_bytes());
        }
    });
    match result {
        Ok(()) => 0,
        Err(e) => {
            match writer.take() {
                Some(mut w) => drop(w.write_all(format!("-{} {e}", e.errno).as_bytes())),
                None => Say { daemon: true }.error(&e.to_string()),
            }
            1
        }
    }
}

/// Lets go of the directory and the terminal.
fn detach() {
    let _ = std::env::set_current_dir("/");
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for fd in 0..3 {
            // SAFETY: replaces a standard descriptor by another valid one.
            unsafe { libc::dup2(null.as_raw_fd(), fd) };
        }
    }
}

/// Where messages go.
#[derive(Clone, Copy)]
struct Say {
    daemon: bool,
}

impl Say {
    fn error(self, text: &str) {
        if !self.daemon {
            eprintln!("vexfs: {text}");
            return;
        }
        if let Ok(text) = CString::new(format!("vexfs: {text}")) {
            // SAFETY: a format that takes one string, and that string.
            unsafe { libc::syslog(libc::LOG_DAEMON | libc::LOG_ERR, c"%s".as_ptr(), text.as_ptr()) };
        }
    }
}

fn open(config: &MountConfig) -> Result<Host, MountError> {
    let o = &config.options;
    let options = HostOptions {
        read_only: o.read_only,
        cache_bytes: o.cache_bytes,
        log_bytes: o.log_bytes,
        ..HostOptions::default()
    };
    let Some(cut) = o.power_cut else {
        return Ok(Host::open_path(&config.source, &options)?);
    };
    let mut side = config.source.clone().into_os_string();
    side.push(".powercut");
    let test = |e: io::Error| MountError::new(format!("{}: {e}", Path::new(&side).display()));
    settle(&config.source, &side, cut.seed).map_err(test)?;
    let access = if o.read_only { Access::ReadOnly } else { Access::ReadWrite };
    let device = PowerCut::new(FileDevice::open(&config.source, access)?, &side).map_err(test)?;
    let device: Box<dyn Device> =
        if cut.without_flushes { Box::new(device.without_flushes()) } else { Box::new(device) };
    Ok(Host::open(device, &config.source.display().to_string(), &options)?)
}

/// The mount options for `fuser`.
fn fuse_config(o: &MountOptions, fsname: String, read_only: bool) -> Config {
    let mut options = vec![
        MountOption::FSName(fsname),
        // As an option of the kernel: `fuser` passes its own `Subtype` to the mount helper only.
        MountOption::CUSTOM("subtype=vexfs".to_string()),
        MountOption::DefaultPermissions,
        if o.dev { MountOption::Dev } else { MountOption::NoDev },
        if o.suid { MountOption::Suid } else { MountOption::NoSuid },
        if o.exec { MountOption::Exec } else { MountOption::NoExec },
        if read_only { MountOption::RO } else { MountOption::RW },
    ];
    if o.sync {
        options.push(MountOption::Sync);
    }
    let mut c = Config::default();
    c.mount_options = options;
    c.acl = if o.allow_other { SessionACL::All } else { SessionACL::Owner };
    c.n_threads = Some(o.threads.max(1));
    c
}

/// Blocks the signals that end the daemon, in this thread and those that it starts.
fn block_signals() -> libc::sigset_t {
    // SAFETY: the set is initialised by sigemptyset before anything else looks at it.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for s in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
            libc::sigaddset(&mut set, s);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

enum End {
    /// The mount is gone (umount, or the connection was aborted).
    Unmounted(io::Result<()>),
    /// A signal asks for the end.
    Signal,
}

/// Opens, mounts, calls `ready` (with a warning, if there is one), serves, closes.
fn serve(config: &MountConfig, say: Say, ready: impl FnOnce(Option<String>)) -> Result<(), MountError> {
    let dir = &config.mountpoint;
    let is_dir = std::fs::metadata(dir).map(|m| m.is_dir());
    match is_dir {
        Ok(true) => {}
        Ok(false) => return Err(MountError::new(format!("{}: not a directory", dir.display())).with(libc::ENOTDIR)),
        Err(e) if e.raw_os_error() == Some(libc::ENOTCONN) => {
            return Err(MountError::new(format!(
                "{0}: a mount whose daemon died is in the way; remove it first: vexfs umount {0}",
                dir.display()
            )))
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(MountError::new(format!("{0}: no such directory; make it first: mkdir {0}", dir.display()))
                .with(libc::ENOENT))
        }
        Err(e) => return Err(MountError::new(format!("{}: {e}", dir.display()))),
    }
    let signals = block_signals();
    let host = open(config)?;
    let warning = (host.read_only() && !config.options.read_only)
        .then(|| format!("{}: cannot be written, mounted read-only", config.source.display()));
    let source = std::fs::canonicalize(&config.source).unwrap_or_else(|_| config.source.clone());
    let fsname = config.options.fsname.clone().unwrap_or_else(|| source.display().to_string());
    let mountpoint = std::fs::canonicalize(dir).unwrap_or_else(|_| dir.clone());

    let config_of = fuse_config(&config.options, fsname, host.read_only());
    let shared = Arc::new(Shared::new(host, config.options.clone()));
    let mut session =
        Session::new(Fs(shared.clone()), &mountpoint, &config_of).map_err(|e| mount_error(&mountpoint, &e))?;
    let _ = shared.notifier.set(session.notifier());
    let mut unmounter = session.unmount_callable();

    let (end, ended) = mpsc::channel();
    let tell = end.clone();
    let spawned = std::thread::Builder::new().name("vexfs-session".to_string()).spawn(move || {
        let _ = tell.send(End::Unmounted(session.run()));
    });
    let server = spawned.map_err(|e| MountError::new(format!("cannot start a thread: {e}")))?;
    let started = std::thread::Builder::new().name("vexfs-signals".to_string()).spawn(move || loop {
        let mut signal = 0;
        // SAFETY: waits for one of the blocked signals and writes its number.
        if unsafe { libc::sigwait(&signals, &mut signal) } == 0 && end.send(End::Signal).is_err() {
            return;
        }
    });
    if let Err(e) = started {
        say.error(&format!("cannot wait for signals: {e}"));
    }
    raise_readahead(&mountpoint);
    ready(warning.clone());
    if let Some(w) = warning.filter(|_| !say.daemon) {
        say.error(&w);
    }

    let by_signal = match wait(&shared, &ended, say) {
        End::Unmounted(r) => {
            if let Err(e) = r {
                say.error(&format!("the connection to the kernel ended with an error: {e}"));
            }
            false
        }
        End::Signal => true,
    };
    if by_signal {
        // Requests of the unmount itself (writing back mapped pages) still have to be served.
        if unmounter.unmount().is_err() {
            // Somebody has files open there; they lose their connection when this process ends.
            let c = CString::new(mountpoint.as_os_str().as_bytes()).unwrap_or_default();
            // SAFETY: a valid path.
            unsafe { libc::umount2(c.as_ptr(), libc::MNT_DETACH) };
        } else {
            let _ = ended.recv_timeout(END_PATIENCE);
        }
    }
    shared.pool.drain(END_PATIENCE);
    shared.release_all();
    let closed = match shared.host.read_only() {
        true => Ok(()),
        false => shared.host.shut(),
    };
    drop(server);
    // What went wrong earlier was reported when it did.
    closed.map_err(|e| MountError::new(format!("{}: could not be closed cleanly: {e}", config.source.display())))
}

/// Waits for the end; commits changes meanwhile.
fn wait(shared: &Shared, ended: &mpsc::Receiver<End>, say: Say) -> End {
    let mut committed = 0;
    let mut reported = false;
    loop {
        match ended.recv_timeout(COMMIT_EVERY) {
            Ok(end) => return end,
            Err(RecvTimeoutError::Disconnected) => return End::Signal,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let changes = shared.changes.load(Ordering::Relaxed);
        if changes != committed && !shared.host.read_only() && shared.host.call(Op::Sync).is_ok() {
            committed = changes;
        }
        if !reported && shared.host.state() == State::Aborted {
            reported = true;
            say.error(
                "a write or flush failed; the volume is read-only until it is mounted again. \
                 Check the device, then unmount, run fsck.vexfs and mount",
            );
        }
    }
}

fn mount_error(dir: &Path, e: &io::Error) -> MountError {
    let text = e.to_string();
    let dir = dir.display();
    if !Path::new("/dev/fuse").exists() {
        return MountError::new("no /dev/fuse; load the module: modprobe fuse");
    }
    if text.contains("user_allow_other") {
        return MountError::new(
            "the option allow_other is for root only, unless /etc/fuse.conf has the line user_allow_other",
        );
    }
    match e.raw_os_error() {
        Some(libc::EACCES) if File::options().read(true).write(true).open("/dev/fuse").is_err() => {
            MountError::new("may not open /dev/fuse; be root, or give it its usual mode: chmod 666 /dev/fuse")
                .with(libc::EACCES)
        }
        Some(libc::EACCES | libc::EPERM) => {
            MountError::new(format!("{dir}: not allowed to mount here; own the directory, or be root"))
                .with(libc::EACCES)
        }
        _ => MountError::new(format!("{dir}: cannot mount: {}", text.trim())),
    }
}

/// The kernel reads ahead 128 KiB unless told otherwise; only root may. Best effort.
fn raise_readahead(dir: &Path) {
    let Ok(table) = std::fs::read_to_string("/proc/self/mountinfo") else { return };
    if let Some(m) = mounts(&table).into_iter().rev().find(|m| m.dir == dir) {
        let _ = std::fs::write(format!("/sys/class/bdi/{}/read_ahead_kb", m.device), (WRITE_MAX >> 10).to_string());
    }
}

/// One line of mountinfo.
#[derive(Debug)]
struct MountLine {
    device: String,
    dir: PathBuf,
    kind: String,
    source: PathBuf,
}

fn mounts(table: &str) -> Vec<MountLine> {
    let line = |l: &str| {
        let (left, right) = l.split_once(" - ")?;
        let mut left = left.split(' ');
        let device = left.nth(2)?.to_string();
        let dir = unescape(left.nth(1)?);
        let mut right = right.split(' ');
        Some(MountLine { device, dir, kind: right.next()?.to_string(), source: unescape(right.next()?) })
    };
    table.lines().filter_map(line).collect()
}

/// Undoes the octal escapes of mountinfo.
fn unescape(s: &str) -> PathBuf {
    let b = s.as_bytes();
    let mut out = Vec::with_capacity(b.len());
    let mut i = 0;
    while i < b.len() {
        let code = b.get(i + 1..i + 4).and_then(|d| u8::from_str_radix(std::str::from_utf8(d).ok()?, 8).ok());
        match (b[i], code) {
            (b'\\', Some(c)) => {
                out.push(c);
                i += 4;
            }
            (c, _) => {
                out.push(c);
                i += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

/// Unmounts the volume at `dir` and waits until its daemon has closed the image.
pub fn unmount(dir: &Path) -> Result<(), MountError> {
    // A mount whose daemon died cannot be asked for its path.
    let path = std::fs::canonicalize(dir).unwrap_or_else(|_| {
        let parent = dir.parent().and_then(|p| std::fs::canonicalize(p).ok());
        match (parent, dir.file_name()) {
            (Some(p), Some(name)) => p.join(name),
            _ => dir.to_path_buf(),
        }
    });
    let name = dir.display();
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .map_err(|e| MountError::new(format!("cannot read the table of mounts: {e}")))?;
    let found = mounts(&table).into_iter().rev().find(|m| m.dir == path);
    let line = match found {
        Some(m) if m.kind == "fuse.vexfs" => m,
        Some(m) => return Err(MountError::new(format!("{name}: is a mount of type {}; use umount {name}", m.kind))),
        None => return Err(MountError::new(format!("{name}: no volume is mounted here")).with(libc::ENOENT)),
    };
    let c = CString::new(path.as_os_str().as_bytes()).map_err(|_| MountError::new(format!("{name}: not a path")))?;
    // SAFETY: a valid path.
    if unsafe { libc::umount2(c.as_ptr(), libc::UMOUNT_NOFOLLOW) } != 0 {
        let e = io::Error::last_os_error();
        match e.raw_os_error() {
            Some(libc::EPERM) => {
                let helper = Command::new("fusermount3").arg("-u").arg("--").arg(&path).output();
                match helper {
                    Ok(o) if o.status.success() => {}
                    Ok(o) => {
                        let text = String::from_utf8_lossy(&o.stderr);
                        return Err(MountError::new(format!("{name}: cannot unmount: {}", text.trim())));
                    }
                    Err(e) => return Err(MountError::new(format!("fusermount3: {e}; install fuse3, or be root"))),
                }
            }
            Some(libc::EBUSY) => {
                return Err(MountError::new(format!("{name}: in use; see who: fuser -vm {name}")).with(libc::EBUSY));
            }
            _ => return Err(MountError::new(format!("{name}: cannot unmount: {e}"))),
        }
    }
    wait_for_release(&line.source);
    Ok(())
}

/// Waits until nobody holds the lock of the image, so that fsck or a copy can follow at once.
fn wait_for_release(source: &Path) {
    let Ok(file) = File::open(source) else { return };
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        // SAFETY: no memory is involved.
        let r = unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_SH | libc::LOCK_NB) };
        if r == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::EWOULDBLOCK) {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_mounts() {
        let table = "22 28 0:21 / /proc rw,nosuid - proc proc rw\n\
                     99 28 0:55 / /mnt/a\\040b rw,relatime shared:5 - fuse.vexfs /img\\134x rw,user_id=0\n";
        let all = mounts(table);
        assert_eq!(all.len(), 2);
        let m = &all[1];
        assert_eq!((m.device.as_str(), m.kind.as_str()), ("0:55", "fuse.vexfs"));
        assert_eq!((m.dir.to_str(), m.source.to_str()), (Some("/mnt/a b"), Some("/img\\x")));
    }

    #[test]
    fn wrong_mounts_are_explained() {
        let config = |source: &str, dir: &str| MountConfig {
            source: source.into(),
            mountpoint: dir.into(),
            options: MountOptions::default(),
            foreground: true,
        };
        let text = |source: &str, dir: &str| mount(&config(source, dir)).unwrap_err().to_string();
        assert!(text("/nonexistent", "/nonexistent").contains("mkdir"));
        assert!(text("/nonexistent", "/etc/passwd").contains("not a directory"));
        assert!(text("/nonexistent", "/tmp").contains("mkfs.vexfs"));
        assert!(unmount(Path::new("/tmp/../etc")).unwrap_err().to_string().contains("no volume"));
    }
}

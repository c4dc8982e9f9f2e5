// SPDX-License-Identifier: GPL-2.0-only
//! A real mount with a real daemon: files, the control file, clean ends, kills and power cuts. Without
//! `/dev/fuse` (or as an ordinary user without `fusermount3`) the tests are skipped and say so; with CI=true in the
//! environment that is a failure.

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{symlink, FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use vexfs_core::proto::wire;
use vexfs_embedded::testing::{settle, Random};
use vexfs_embedded::{make, FileDevice, Files, Host, HostOptions, MakeOptions};

/// Whether mounting is possible here.
fn can_mount() -> bool {
    // SAFETY: asks only.
    let root = unsafe { libc::geteuid() } == 0;
    let helper = Command::new("fusermount3").arg("-V").output().is_ok();
    let reason = if OpenOptions::new().read(true).write(true).open("/dev/fuse").is_err() {
        "/dev/fuse is missing or may not be opened"
    } else if !root && !helper {
        "neither root nor fusermount3 is there"
    } else {
        return true;
    };
    assert!(std::env::var("CI").as_deref() != Ok("true"), "cannot mount: {reason}");
    eprintln!("skipped: {reason}");
    false
}

/// An image of its own for each test, removed at the end.
struct Place {
    base: PathBuf,
}

impl Place {
    fn new() -> Place {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let n = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("vexfs-mount-{}-{n}", std::process::id()));
        fs::create_dir_all(base.join("mnt")).unwrap();
        let device = FileDevice::create(base.join("image"), 256 << 20).unwrap();
        // SAFETY: ask only.
        let (uid, gid) = unsafe { (libc::geteuid(), libc::getegid()) };
        make(&device, &MakeOptions { uid, gid, ..MakeOptions::default() }).unwrap();
        Place { base }
    }

    fn image(&self) -> PathBuf {
        self.base.join("image")
    }

    fn side(&self) -> PathBuf {
        self.base.join("image.powercut")
    }

    fn mnt(&self) -> PathBuf {
        self.base.join("mnt")
    }

    fn mount(&self, options: &str) -> Mount {
        let child = Command::new(env!("CARGO_BIN_EXE_mount-fuse-vexfs"))
            .args([self.image().as_os_str(), self.mnt().as_os_str(), OsStr::new("--foreground")])
            .args(if options.is_empty() { vec![] } else { vec!["-o", options] })
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let mut m = Mount { child, dir: self.mnt() };
        let outside = fs::metadata(&self.base).unwrap().dev();
        let end = Instant::now() + Duration::from_secs(60);
        while fs::metadata(&m.dir).map_or(true, |a| a.dev() == outside) {
            assert!(m.child.try_wait().unwrap().is_none(), "the daemon ended before it had mounted");
            assert!(Instant::now() < end, "not mounted after a minute");
            std::thread::sleep(Duration::from_millis(5));
        }
        m
    }

    /// Opens the image without a mount.
    fn embedded(&self) -> Host {
        Host::open_path(self.image(), &HostOptions::default()).unwrap()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("left for inspection: {}", self.base.display());
        } else {
            let _ = fs::remove_dir_all(&self.base);
        }
    }
}

struct Mount {
    child: Child,
    dir: PathBuf,
}

impl Mount {
    fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.join(name)
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a process that this one started and has not waited for.
        unsafe { libc::kill(self.child.id() as i32, signal) };
    }

    /// Ends the daemon with SIGTERM, which has to be clean.
    fn end(mut self) {
        self.signal(libc::SIGTERM);
        assert!(self.child.wait().unwrap().success());
    }

    /// Kills the daemon.
    fn kill(mut self) {
        self.signal(libc::SIGKILL);
        self.child.wait().unwrap();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let dir = CString::new(self.dir.as_os_str().as_bytes()).unwrap();
        // SAFETY: a valid path. What a killed daemon leaves behind.
        if unsafe { libc::umount2(dir.as_ptr(), libc::MNT_DETACH) } != 0 {
            let _ = Command::new("fusermount3").args(["-u", "-q", "-z"]).arg(&self.dir).output();
        }
    }
}

fn errno<T: std::fmt::Debug>(r: io::Result<T>) -> i32 {
    r.unwrap_err().raw_os_error().unwrap()
}

fn c(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap()
}

fn setxattr(path: &Path, name: &str, value: &[u8], flags: i32) -> io::Result<()> {
    let (p, n) = (c(path), CString::new(name).unwrap());
    // SAFETY: valid strings and a buffer of the given length.
    match unsafe { libc::lsetxattr(p.as_ptr(), n.as_ptr(), value.as_ptr().cast(), value.len(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn getxattr(path: &Path, name: &str, room: usize) -> io::Result<Vec<u8>> {
    let (p, n) = (c(path), CString::new(name).unwrap());
    let mut buf = vec![0; room];
    // SAFETY: valid strings and a buffer of the given length.
    let len = unsafe { libc::lgetxattr(p.as_ptr(), n.as_ptr(), buf.as_mut_ptr().cast(), room) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    if room > 0 {
        buf.truncate(len as usize);
        return Ok(buf);
    }
    Ok(vec![0; len as usize])
}

fn listxattr(path: &Path) -> Vec<String> {
    let p = c(path);
    let mut buf = vec![0u8; 65536];
    // SAFETY: a valid string and a buffer of the given length.
    let len = unsafe { libc::llistxattr(p.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    assert!(len >= 0);
    let mut names: Vec<String> = buf[..len as usize]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8_lossy(n).into())
        .collect();
    names.sort();
    names
}

fn rename2(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (f, t) = (c(from), c(to));
    // SAFETY: valid strings.
    match unsafe { libc::renameat2(libc::AT_FDCWD, f.as_ptr(), libc::AT_FDCWD, t.as_ptr(), flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[test]
fn files_names_and_attributes() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let m = place.mount("");
    let p = |n: &str| m.path(n);

    // Contents.
    let mut f = OpenOptions::new().read(true).write(true).create_new(true).open(p("a")).unwrap();
    f.write_all(b"hello, world").unwrap();
    f.seek(SeekFrom::Start(7)).unwrap();
    f.write_all(b"VexFS").unwrap();
    assert_eq!(fs::read(p("a")).unwrap(), b"hello, VexFS");
    f.write_all_at(b"far", 1 << 20).unwrap();
    assert_eq!(f.metadata().unwrap().len(), (1 << 20) + 3);
    assert!(f.metadata().unwrap().blocks() < 100, "a hole takes no space");
    let seek = |at: i64, whence: i32| {
        // SAFETY: no memory is involved.
        let r = unsafe { libc::lseek(f.as_raw_fd(), at, whence) };
        if r < 0 {
            Err(io::Error::last_os_error())
        } else {
            Ok(r)
        }
    };
    assert_eq!(seek(0, libc::SEEK_HOLE).unwrap(), 4096);
    assert_eq!(seek(4096, libc::SEEK_DATA).unwrap(), 1 << 20);
    assert_eq!(errno(seek(2 << 20, libc::SEEK_DATA)), libc::ENXIO);
    f.set_len(5).unwrap();
    assert_eq!(fs::read(p("a")).unwrap(), b"hello");
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::fallocate(f.as_raw_fd(), 0, 0, 100_000) }, 0);
    assert_eq!(f.metadata().unwrap().len(), 100_000);
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no memory is involved.
    assert_eq!(unsafe { libc::fallocate(f.as_raw_fd(), punch, 0, 3) }, 0);
    assert_eq!(&fs::read(p("a")).unwrap()[..6], b"\0\0\0lo\0");
    f.sync_all().unwrap();
    f.sync_data().unwrap();
    drop(OpenOptions::new().write(true).truncate(true).open(p("a")).unwrap());
    assert_eq!(fs::metadata(p("a")).unwrap().len(), 0);
    let mut log = OpenOptions::new().append(true).custom_flags(libc::O_SYNC).open(p("a")).unwrap();
    log.write_all(b"one ").unwrap();
    log.write_all(b"two").unwrap();
    assert_eq!(fs::read(p("a")).unwrap(), b"one two");

    // Names.
    fs::hard_link(p("a"), p("b")).unwrap();
    assert_eq!(fs::metadata(p("a")).unwrap().nlink(), 2);
    symlink("b", p("s")).unwrap();
    assert_eq!(fs::read_link(p("s")).unwrap(), Path::new("b"));
    assert_eq!(fs::read(p("s")).unwrap(), b"one two");
    fs::create_dir(p("d")).unwrap();
    fs::rename(p("b"), p("d/c")).unwrap();
    assert_eq!(fs::read(p("d/c")).unwrap(), b"one two");
    assert_eq!(errno(fs::remove_dir(p("d"))), libc::ENOTEMPTY);
    assert_eq!(errno(fs::read(p("b"))), libc::ENOENT);
    fs::write(p("e"), b"e").unwrap();
    assert_eq!(errno(rename2(&p("e"), &p("d/c"), libc::RENAME_NOREPLACE)), libc::EEXIST);
    rename2(&p("e"), &p("d/c"), libc::RENAME_EXCHANGE).unwrap();
    assert_eq!((fs::read(p("e")).unwrap(), fs::read(p("d/c")).unwrap()), (b"one two".to_vec(), b"e".to_vec()));
    assert_eq!(errno(File::create(p(&"x".repeat(256)))), libc::ENAMETOOLONG);
    let odd = OsStr::from_bytes(&[0xff, b' ', 0xfe, b'\n', 1]);
    fs::write(m.path(odd), b"odd").unwrap();
    assert!(fs::read_dir(&m.dir).unwrap().any(|e| e.unwrap().file_name() == odd));

    // A file without a name lives as long as it is open.
    let mut ghost = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(p("ghost")).unwrap();
    fs::remove_file(p("ghost")).unwrap();
    ghost.write_all(b"still here").unwrap();
    ghost.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    ghost.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), ghost.metadata().unwrap().nlink()), ("still here", 0));

    // Attributes.
    fs::set_permissions(p("e"), fs::Permissions::from_mode(0o640)).unwrap();
    assert_eq!(fs::metadata(p("e")).unwrap().mode() & 0o7777, 0o640);
    let times =
        [libc::timespec { tv_sec: -5, tv_nsec: 123 }, libc::timespec { tv_sec: 4_000_000_000, tv_nsec: 999_999_999 }];
    // SAFETY: a valid string and two times.
    assert_eq!(unsafe { libc::utimensat(libc::AT_FDCWD, c(&p("e")).as_ptr(), times.as_ptr(), 0) }, 0);
    let a = fs::metadata(p("e")).unwrap();
    assert_eq!((a.atime(), a.atime_nsec(), a.mtime(), a.mtime_nsec()), (-5, 123, 4_000_000_000, 999_999_999));
    fs::read(p("e")).unwrap();
    let b = fs::metadata(p("e")).unwrap();
    assert!(b.atime() > 0, "relatime renews an access time before the modification time");
    assert_eq!((b.ctime(), b.ctime_nsec()), (a.ctime(), a.ctime_nsec()), "reading is no change");

    // Extended attributes.
    setxattr(&p("e"), "user.one", b"1", libc::XATTR_CREATE).unwrap();
    setxattr(&p("e"), "user.big", &[7; 60_000], 0).unwrap();
    assert_eq!(errno(setxattr(&p("e"), "user.one", b"2", libc::XATTR_CREATE)), libc::EEXIST);
    assert_eq!(errno(setxattr(&p("e"), "user.two", b"2", libc::XATTR_REPLACE)), libc::ENODATA);
    assert_eq!(getxattr(&p("e"), "user.one", 100).unwrap(), b"1");
    assert_eq!(getxattr(&p("e"), "user.big", 0).unwrap().len(), 60_000);
    assert_eq!(errno(getxattr(&p("e"), "user.big", 100)), libc::ERANGE);
    assert_eq!(errno(getxattr(&p("e"), "user.none", 100)), libc::ENODATA);
    assert_eq!(listxattr(&p("e")), ["user.big", "user.one"]);

    drop((f, log));
    drop(ghost);
    m.end();

    // The same files without the mount, and mounted again.
    let host = place.embedded();
    let files = Files::new(&host);
    assert_eq!(files.read(b"/d/c").unwrap(), b"e");
    assert!(files.resolve(b"/ghost", false).is_err());
    host.close().unwrap();
    let m = place.mount("ro");
    assert_eq!(fs::read(m.path("e")).unwrap(), b"one two");
    assert_eq!(errno(File::create(m.path("new"))), libc::EROFS);
    assert_eq!(errno(OpenOptions::new().write(true).open(m.path("e"))), libc::EROFS);
    assert_eq!(errno(fs::remove_file(m.path("e"))), libc::EROFS);
    m.end();
}

#[test]
fn a_big_directory() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let m = place.mount("");
    let dir = m.path("d");
    fs::create_dir(&dir).unwrap();
    let names: Vec<String> = (0..3000).map(|i| format!("{i}-{}", "n".repeat(i % 200))).collect();
    for n in &names {
        File::create(dir.join(n)).unwrap();
    }
    let list = || {
        let mut l: Vec<String> =
            fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        l.sort();
        l
    };
    let mut want = names.clone();
    want.sort();
    assert_eq!(list(), want);
    assert_eq!(list(), want, "again, from the kernel's cache");
    // Removing while reading: each entry that stays is seen once.
    let mut seen = Vec::new();
    for e in fs::read_dir(&dir).unwrap() {
        let name = e.unwrap().file_name().into_string().unwrap();
        if name.len() % 2 == 0 {
            fs::remove_file(dir.join(&name)).unwrap();
        }
        seen.push(name);
    }
    seen.sort();
    assert_eq!(seen, want);
    want.retain(|n| n.len() % 2 != 0);
    assert_eq!(list(), want);
    m.end();
}

/// One request of the protocol without a body.
fn request(op: u16) -> Vec<u8> {
    wire::RequestHead { len: 32, version: wire::VERSION, op, tag: 77, ..Default::default() }.bytes().to_vec()
}

#[test]
fn the_control_file() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let m = place.mount("");
    fs::create_dir(m.path("d")).unwrap();
    let control = m.path("d/.vexfs");
    assert_eq!(fs::metadata(&control).unwrap().mode(), libc::S_IFREG | 0o666);
    assert_eq!(fs::read_dir(m.path("d")).unwrap().count(), 0, "never listed");
    assert_eq!(errno(fs::remove_file(&control)), libc::EPERM);
    assert_eq!(errno(fs::rename(&control, m.path("x"))), libc::EPERM);
    assert_eq!(errno(fs::hard_link(&control, m.path("x"))), libc::EPERM);
    assert_eq!(errno(fs::create_dir(&control)), libc::EEXIST);
    fs::write(m.path("y"), b"").unwrap();
    assert_eq!(errno(fs::rename(m.path("y"), &control)), libc::EPERM);
    assert_eq!(errno(fs::set_permissions(&control, fs::Permissions::from_mode(0o600))), libc::EPERM);
    assert_eq!(errno(fs::metadata(m.path("y/.vexfs"))), libc::ENOTDIR);

    let open = || OpenOptions::new().read(true).write(true).open(&control).unwrap();
    let ask = |s: &mut File, frame: &[u8], piece: usize| {
        for p in frame.chunks(piece) {
            s.write_all(p).unwrap();
        }
        let mut head = [0; wire::ReplyHead::SIZE];
        s.read_exact(&mut head).unwrap();
        let head = wire::ReplyHead::parse(&head).unwrap();
        let mut body = vec![0; head.len as usize - wire::ReplyHead::SIZE];
        s.read_exact(&mut body).unwrap();
        (head, body)
    };
    let (mut one, mut two) = (open(), open());
    one.write_all(&request(wire::op::STATS)[..10]).unwrap(); // a session of its own each
    let (head, body) = ask(&mut two, &request(wire::op::STATS), 1);
    assert_eq!((head.status, head.tag, head.op), (0, 77, wire::op::STATS));
    assert_eq!(wire::StatsReply::parse(&body).unwrap().blocks, (256 << 20) / 4096);
    let (head, _) = ask(&mut one, &request(wire::op::STATS)[10..], 100);
    assert_eq!(head.status, 0);
    assert_eq!(one.read(&mut [0; 8]).unwrap(), 0, "nothing more to read");
    let (head, text) = ask(&mut one, &request(wire::op::INFO), 7);
    assert_eq!(head.status, libc::EINVAL);
    assert!(String::from_utf8_lossy(&text).contains("collection"));
    assert_eq!(errno(one.write_all(&u32::MAX.to_le_bytes()).and_then(|()| one.write_all(&[0; 28]))), libc::EINVAL);
    assert_eq!(ask(&mut one, &request(wire::op::STATS), 32).0.status, 0, "the session goes on");
    drop((one, two));
    fs::remove_dir(m.path("d")).unwrap();
    m.end();

    // Searching works where nothing may be changed, by ioctl: nothing can be opened for writing there.
    let m = place.mount("ro");
    let e = OpenOptions::new().read(true).write(true).open(m.path(".vexfs")).unwrap_err();
    assert_eq!(e.raw_os_error(), Some(libc::EROFS));
    let mut s = File::open(m.path(".vexfs")).unwrap();
    let send = |s: &File, number: u32, piece: &[u8]| {
        // SAFETY: the number says how many bytes are read from the pointer, at most those of `piece`.
        let r = unsafe { libc::ioctl(s.as_raw_fd(), number.into(), piece.as_ptr()) };
        if r == 0 {
            0
        } else {
            std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
        }
    };
    let mut status = |op| {
        for piece in request(op).chunks(11) {
            assert_eq!(send(&s, wire::ioctl_request(piece.len()), piece), 0);
        }
        let mut head = [0; wire::ReplyHead::SIZE];
        s.read_exact(&mut head).unwrap();
        let head = wire::ReplyHead::parse(&head).unwrap();
        s.read_exact(&mut vec![0; head.len as usize - wire::ReplyHead::SIZE]).unwrap();
        head.status
    };
    assert_eq!((status(wire::op::STATS), status(wire::op::DROP)), (0, libc::EROFS));
    let other = File::open(m.path(".vexfs")).unwrap();
    assert_eq!(send(&other, wire::ioctl_request(4) + 1, &[0; 4]), libc::ENOTTY);
    assert_eq!(send(&other, wire::ioctl_request(4), &u32::MAX.to_le_bytes()), 0);
    assert_eq!(send(&other, wire::ioctl_request(4), &[0; 4]), libc::EINVAL);
    drop((s, other));
    m.end();
}

#[test]
fn clean_ends() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    // By umount from outside: the daemon ends by itself, and the image is free when `unmount` returns.
    let mut m = place.mount("");
    fs::write(m.path("a"), b"1").unwrap();
    vexfs_fuse::unmount(&m.dir).unwrap();
    let host = place.embedded();
    assert_eq!(Files::new(&host).read(b"/a").unwrap(), b"1");
    drop(host);
    assert!(m.child.wait().unwrap().success());
    drop(m);
    // By a signal, with a file that is still open.
    let m = place.mount("");
    let mut f = File::create(m.path("b")).unwrap();
    f.write_all(b"2").unwrap();
    let e = vexfs_fuse::unmount(&m.dir).unwrap_err().to_string();
    assert!(e.contains("in use"), "{e}");
    m.end();
    assert_eq!(errno(f.write_all(b"3")), libc::ENOTCONN);
    // In the background.
    let bin = env!("CARGO_BIN_EXE_mount-fuse-vexfs");
    let run = |image: &Path| Command::new(bin).arg(image).arg(place.mnt()).output().unwrap();
    let out = run(&place.image());
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(fs::read(place.mnt().join("b")).unwrap(), b"2");
    let again = run(&place.image());
    assert_eq!(again.status.code(), Some(32));
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(text.contains("in use by process") && text.lines().count() == 1, "{text}");
    vexfs_fuse::unmount(&place.mnt()).unwrap();
    let wrong = run(Path::new("/nonexistent"));
    assert_eq!(wrong.status.code(), Some(32));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("no such file"));
}

/// What a writer knows to be there, by file.
struct Known {
    name: String,
    data: Vec<u8>,
}

/// Writes files into `dir` until something fails, which is the death of the daemon. Gives back what was
/// acknowledged: all of it, or (`durable`) what was synced.
fn write_until_death(dir: &Path, seed: u64, durable: bool, stop: &AtomicBool) -> Vec<Known> {
    let mut r = Random::new(seed);
    let mut known = Vec::new();
    for i in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("{seed}-{i}");
        let data: Vec<u8> = (0..1 + r.below(20_000)).map(|_| r.draw() as u8).collect();
        let sync = r.below(4) == 0;
        let step = || -> io::Result<()> {
            let temporary = dir.join(format!("{name}.new"));
            let mut f = File::create(&temporary)?;
            for piece in data.chunks(6000) {
                f.write_all(piece)?;
            }
            if sync {
                f.sync_all()?;
            }
            drop(f);
            fs::rename(&temporary, dir.join(&name))?;
            if sync {
                File::open(dir)?.sync_all()?;
            }
            Ok(())
        };
        if step().is_err() {
            break;
        }
        if sync || !durable {
            known.push(Known { name, data });
        }
    }
    known
}

fn missing(dir: &Path, known: &[Known]) -> Vec<String> {
    known
        .iter()
        .filter_map(|k| match fs::read(dir.join(&k.name)) {
            Ok(data) if data == k.data => None,
            Ok(data) => Some(format!("{}: {} bytes, wrong", k.name, data.len())),
            Err(e) => Some(format!("{}: {e}", k.name)),
        })
        .collect()
}

#[test]
fn a_kill_loses_nothing_acknowledged() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut known = Vec::new();
    let mut r = Random::new(1);
    for round in 0..5 {
        let m = place.mount("log_mb=1");
        assert_eq!(missing(&m.dir, &known), Vec::<String>::new(), "before round {round}");
        let stop = AtomicBool::new(false);
        let dir = m.dir.clone();
        let more = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..3)
                .map(|i| {
                    let (dir, stop) = (&dir, &stop);
                    scope.spawn(move || write_until_death(dir, round * 10 + i, false, stop))
                })
                .collect();
            std::thread::sleep(Duration::from_millis(100 + r.below(400)));
            m.kill();
            stop.store(true, Ordering::Relaxed);
            writers.into_iter().flat_map(|w| w.join().unwrap()).collect::<Vec<_>>()
        });
        assert!(!more.is_empty());
        known.extend(more);
    }
    let m = place.mount("");
    assert_eq!(missing(&m.dir, &known), Vec::<String>::new());
    m.end();
}

/// Kills the daemon over a device that loses what was not flushed; what is missing of what was durable.
fn power_cut(seed: u64, options: &str) -> Vec<String> {
    let place = Place::new();
    let m = place.mount(options);
    let stop = AtomicBool::new(false);
    let dir = m.dir.clone();
    let known = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..2)
            .map(|i| {
                let (dir, stop) = (&dir, &stop);
                scope.spawn(move || write_until_death(dir, seed * 10 + i, true, stop))
            })
            .collect();
        std::thread::sleep(Duration::from_millis(200 + Random::new(seed).below(300)));
        m.kill();
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().flat_map(|w| w.join().unwrap()).collect::<Vec<_>>()
    });
    settle(place.image(), place.side(), seed).unwrap();
    let host = match Host::open_path(place.image(), &HostOptions::default()) {
        Ok(h) => h,
        Err(e) => return vec![e.to_string()],
    };
    let files = Files::new(&host);
    known.iter().filter(|k| !files.read(k.name.as_bytes()).is_ok_and(|d| d == k.data)).map(|k| k.name.clone()).collect()
}

#[test]
fn a_power_cut_loses_nothing_durable() {
    if !can_mount() {
        return;
    }
    for seed in 0..6 {
        assert_eq!(power_cut(seed, "powercut=1,log_mb=1"), Vec::<String>::new(), "seed {seed}");
    }
}

#[test]
fn without_flushes_a_power_cut_does_lose() {
    if !can_mount() {
        return;
    }
    let lost = (0..6).filter(|seed| !power_cut(*seed, "powercut=1,noflush").is_empty()).count();
    assert!(lost > 0, "six power cuts without a flush lost nothing: the test proves nothing");
}

// SPDX-License-Identifier: GPL-2.0-only
//! Files of an image or device that is not mounted: ls, cat, put, rm, mkdir, stat.

use crate::args::{Cat, Ls, Mkdir, Put, Rm, Stat};
use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::place::{self, close, files_error, open_to_read, open_to_write, volume_error};
use crate::show;
use serde_json::{Map, Value};
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use vexfs_core::format::inode_flags;
use vexfs_core::op::{Attr, Op, Reply};
use vexfs_core::Error;
use vexfs_embedded::{Files, FilesError, Host};

/// Volumes that a command uses, opened once each.
struct Volumes {
    open: Vec<(PathBuf, Host)>,
    write: bool,
}

impl Volumes {
    fn new(write: bool) -> Volumes {
        Volumes { open: Vec::new(), write }
    }

    /// The volume and the path in it that `text` names.
    fn find(&mut self, text: &std::ffi::OsStr, tool: &str) -> Done<(&Host, Vec<u8>)> {
        let (target, path) = place::Place::inside(text, tool)?;
        let at = match self.open.iter().position(|(t, _)| *t == target) {
            Some(i) => i,
            None => {
                let host = if self.write { open_to_write(&target)? } else { open_to_read(&target)? };
                self.open.push((target, host));
                self.open.len() - 1
            }
        };
        Ok((&self.open[at].1, path))
    }

    /// Runs `each` on every path, closes the volumes, and gives the first failure.
    fn each(mut self, texts: &[OsString], tool: &str, mut each: impl FnMut(&Host, &[u8], &str) -> Done) -> Done {
        let mut result = Ok(());
        for text in texts {
            let done = self.find(text, tool).and_then(|(host, path)| each(host, &path, &text.to_string_lossy()));
            if let Err(e) = done {
                result = Err(report_earlier(result, e));
            }
        }
        self.close(result)
    }

    fn close(self, mut result: Done) -> Done {
        for (target, host) in self.open {
            if self.write {
                if let Err(e) = close(&target, host) {
                    result = Err(report_earlier(result, e));
                }
            }
        }
        result
    }
}

/// Prints the failure before, if there is one, and goes on with `next`.
fn report_earlier(before: Done, next: Failure) -> Failure {
    if let Err(e) = before {
        eprintln!("vexfs: {e}");
    }
    next
}

/// `vexfs ls`.
pub fn ls(a: &Ls) -> Done {
    let show_one = |name: &[u8], attr: &Attr, target: Option<Vec<u8>>| {
        if a.json {
            let mut o = Map::new();
            show::put_name(&mut o, "name", name);
            describe(&mut o, attr, target.as_deref());
            show::line(Value::from(o))
        } else if a.long {
            let to = target.map(|t| format!(" -> {}", show::name(&t))).unwrap_or_default();
            show::line(format!(
                "{} {:>3} {:>5} {:>5} {:>12} {} {}{to}",
                mode_text(attr.mode),
                attr.nlink,
                attr.uid,
                attr.gid,
                attr.size,
                show::time(attr.mtime.sec),
                show::name(name)
            ))
        } else {
            show::line(show::name(name))
        }
    };
    Volumes::new(false).each(std::slice::from_ref(&a.path), "ls", |host, path, text| {
        let files = Files::new(host);
        let link = |attr: &Attr| link_target(host, attr).map_err(|e| volume_error(text, e));
        let attr = files.resolve(path, true).map_err(|e| volume_error(text, e))?;
        if attr.mode & libc::S_IFMT != libc::S_IFDIR {
            let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
            return show_one(name, &attr, None);
        }
        let mut entries = files.list(attr.ino, true).map_err(|e| volume_error(text, e))?;
        entries.sort_unstable_by(|x, y| x.name.cmp(&y.name));
        for e in entries {
            let attr = match e.attr {
                Some(attr) => attr,
                None => files.attr(e.ino).map_err(|e| volume_error(text, e))?,
            };
            let target = if a.json || a.long { link(&attr)? } else { None };
            show_one(&e.name, &attr, target)?;
        }
        Ok(())
    })
}

/// `vexfs cat`.
pub fn cat(a: &Cat) -> Done {
    Volumes::new(false).each(&a.paths, "cat", |host, path, text| {
        let files = Files::new(host);
        let attr = files.resolve(path, true).map_err(|e| volume_error(text, e))?;
        if attr.mode & libc::S_IFMT == libc::S_IFDIR {
            return Err(volume_error(text, Error::IsDirectory));
        }
        match files.read_to(attr.ino, &mut std::io::stdout().lock()) {
            Ok(_) => Ok(()),
            Err(FilesError::Stream(e)) if e.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
            Err(e) => Err(files_error(text, &e)),
        }
    })
}

/// `vexfs put`.
pub fn put(a: &Put) -> Done {
    let mut volumes = Volumes::new(true);
    let to = a.to.to_string_lossy();
    let result = volumes.find(&a.to, "cp").and_then(|(host, path)| {
        let files = Files::new(host);
        let is_dir = files.resolve(&path, true).is_ok_and(|t| t.mode & libc::S_IFMT == libc::S_IFDIR);
        if !is_dir && (a.files.len() > 1 || path.ends_with(b"/")) {
            fail!(code::NOT_FOUND, "{to}: no such directory; make it: vexfs mkdir -p {to}");
        }
        let mut result = Ok(());
        for file in &a.files {
            if let Err(e) = put_one(&files, file, &path, &to, is_dir) {
                result = Err(report_earlier(result, e));
            }
        }
        files.sync().map_err(|e| volume_error(&to, e))?;
        result
    });
    volumes.close(result)
}

fn put_one(files: &Files, file: &Path, to: &[u8], shown: &str, is_dir: bool) -> Done {
    let (mut path, mut shown) = (to.to_vec(), shown.to_string());
    if is_dir {
        let Some(name) = file.file_name().filter(|_| file != Path::new("-")) else {
            fail!(code::USAGE, "{}: has no name of its own; say which file to write", file.display());
        };
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        shown = format!("{}/{}", shown.trim_end_matches('/'), show::name(name.as_bytes()));
    }
    let done = if file == Path::new("-") {
        files.write_from(&path, 0o644, &mut std::io::stdin().lock())
    } else {
        let mut source = std::fs::File::open(file).map_err(|e| Failure::io(file.display(), &e))?;
        let meta = source.metadata().map_err(|e| Failure::io(file.display(), &e))?;
        if meta.is_dir() {
            fail!(code::USAGE, "{}: is a directory; put copies files", file.display());
        }
        let bar = show::progress_bytes(meta.len(), &file.display().to_string());
        let done = files.write_from(&path, meta.permissions().mode() & 0o7777, &mut bar.wrap_read(&mut source));
        bar.finish_and_clear();
        done
    };
    done.map(|_| ()).map_err(|e| match e {
        FilesError::Stream(e) => Failure::io(file.display(), &e),
        FilesError::Volume(Error::NotFound) => {
            Failure::new(code::NOT_FOUND, format!("{shown}: no such directory above it; make it: vexfs mkdir -p"))
        }
        FilesError::Volume(Error::Exists) if path.rsplit(|b| *b == b'/').next() == Some(b".vexfs") => {
            Failure::new(code::EXISTS, format!("{shown}: the name .vexfs is that of the control file; use another"))
        }
        FilesError::Volume(e) => volume_error(&shown, e),
    })
}

/// `vexfs rm`.
pub fn rm(a: &Rm) -> Done {
    Volumes::new(true).each(&a.paths, if a.recursive { "rm -r" } else { "rm" }, |host, path, text| {
        let files = Files::new(host);
        let attr = match files.resolve(path, false) {
            Err(Error::NotFound) if a.force => return Ok(()),
            r => r.map_err(|e| volume_error(text, e))?,
        };
        if attr.ino == vexfs_core::op::ROOT {
            fail!(code::USAGE, "{text}: is the root directory of the volume, which stays");
        }
        if a.recursive {
            return files.remove_all(path).map_err(|e| match e {
                // All files are gone by then: what is left are records.
                Error::NotEmpty => Failure::new(
                    code::EXISTS,
                    format!("{text}: a collection with records is in it; drop it first: vexfs collection drop"),
                ),
                e => volume_error(text, e),
            });
        }
        if attr.mode & libc::S_IFMT == libc::S_IFDIR {
            fail!(code::USAGE, "{text}: is a directory; use vexfs rm -r");
        }
        files.remove(path).map_err(|e| volume_error(text, e))
    })
}

/// `vexfs mkdir`.
pub fn mkdir(a: &Mkdir) -> Done {
    Volumes::new(true).each(&a.paths, "mkdir", |host, path, text| {
        let files = Files::new(host);
        let made = if a.parents { files.mkdir_all(path, 0o755) } else { files.mkdir(path, 0o755) };
        made.map(|_| ()).map_err(|e| volume_error(text, e))
    })
}

/// `vexfs stat`.
pub fn stat(a: &Stat) -> Done {
    Volumes::new(false).each(&a.paths, "stat", |host, path, text| {
        let files = Files::new(host);
        let attr = files.resolve(path, false).map_err(|e| volume_error(text, e))?;
        let target = link_target(host, &attr).map_err(|e| volume_error(text, e))?;
        if a.json {
            let mut o = Map::new();
            show::put_name(&mut o, "path", path);
            describe(&mut o, &attr, target.as_deref());
            return show::line(Value::from(o));
        }
        let to = target.map(|t| format!(" -> {}", show::name(&t))).unwrap_or_default();
        show::line(format!("{}{to}", show::name(path)))?;
        show::line(format!(
            "  {} {}  inode {}  links {}  owner {}:{}",
            kind_text(attr.mode),
            mode_text(attr.mode),
            attr.ino,
            attr.nlink,
            attr.uid,
            attr.gid
        ))?;
        show::line(format!("  size {}  blocks {}", attr.size, attr.blocks))?;
        for (what, t) in
            [("accessed", attr.atime), ("modified", attr.mtime), ("changed", attr.ctime), ("created", attr.btime)]
        {
            show::line(format!("  {what:8} {}.{:09}", show::time(t.sec), t.nsec))?;
        }
        if attr.flags & inode_flags::INCOMPLETE != 0 {
            show::line("  some of its contents were lost in a repair; reading there is an error")?;
        }
        match (attr.flags & inode_flags::EMBEDDED != 0, attr.flags & inode_flags::STALE != 0) {
            (true, true) => show::line("  has an embedding, older than its contents"),
            (true, false) => show::line("  has an embedding"),
            _ if attr.flags & inode_flags::COLLECTION != 0 => show::line("  is a collection"),
            _ => Ok(()),
        }
    })
}

/// Where a symbolic link leads; `None` for everything else.
fn link_target(host: &Host, attr: &Attr) -> Result<Option<Vec<u8>>, Error> {
    if attr.mode & libc::S_IFMT != libc::S_IFLNK {
        return Ok(None);
    }
    match host.call(Op::ReadLink { ino: attr.ino })? {
        Reply::Bytes(target) => Ok(Some(target)),
        _ => Err(Error::Corrupt),
    }
}

/// Attributes as members of a JSON object.
fn describe(o: &mut Map<String, Value>, a: &Attr, target: Option<&[u8]>) {
    o.insert("type".into(), kind_text(a.mode).into());
    o.insert("inode".into(), a.ino.into());
    o.insert("mode".into(), format!("{:04o}", a.mode & 0o7777).into());
    o.insert("links".into(), a.nlink.into());
    o.insert("uid".into(), a.uid.into());
    o.insert("gid".into(), a.gid.into());
    o.insert("size".into(), a.size.into());
    o.insert("blocks".into(), a.blocks.into());
    for (key, t) in [("atime", a.atime), ("mtime", a.mtime), ("ctime", a.ctime), ("btime", a.btime)] {
        o.insert(key.into(), format!("{}.{:09}", t.sec, t.nsec).into());
    }
    o.insert("collection".into(), (a.flags & inode_flags::COLLECTION != 0).into());
    o.insert("embedding".into(), (a.flags & inode_flags::EMBEDDED != 0).into());
    o.insert("stale".into(), (a.flags & inode_flags::STALE != 0).into());
    o.insert("incomplete".into(), (a.flags & inode_flags::INCOMPLETE != 0).into());
    if let Some(t) = target {
        show::put_name(o, "target", t);
    }
}

fn kind_text(mode: u32) -> &'static str {
    match mode & libc::S_IFMT {
        libc::S_IFREG => "file",
        libc::S_IFDIR => "directory",
        libc::S_IFLNK => "symlink",
        libc::S_IFIFO => "fifo",
        libc::S_IFSOCK => "socket",
        libc::S_IFCHR => "character device",
        libc::S_IFBLK => "block device",
        _ => "unknown",
    }
}

/// Type and permissions as ls(1) shows them.
fn mode_text(mode: u32) -> String {
    let mut s = String::with_capacity(10);
    s.push(match mode & libc::S_IFMT {
        libc::S_IFREG => '-',
        libc::S_IFDIR => 'd',
        libc::S_IFLNK => 'l',
        libc::S_IFIFO => 'p',
        libc::S_IFSOCK => 's',
        libc::S_IFCHR => 'c',
        libc::S_IFBLK => 'b',
        _ => '?',
    });
    for (shift, special, mark) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        s.push(if bits & 4 != 0 { 'r' } else { '-' });
        s.push(if bits & 2 != 0 { 'w' } else { '-' });
        s.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => mark,
            (true, false) => mark.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    s
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        assert_eq!(mode_text(0o100644), "-rw-r--r--");
        assert_eq!(mode_text(0o041777), "drwxrwxrwt");
        assert_eq!(mode_text(0o104755), "-rwsr-xr-x");
        assert_eq!(mode_text(0o102644), "-rw-r-Sr--");
    }
}

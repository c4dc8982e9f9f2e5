// SPDX-License-Identifier: GPL-2.0-only
//! A session with one directory of a volume: the same requests whether the volume is mounted or opened in-process.

use crate::fail;
use crate::fail::{code, Done, Failure};
use crate::place::{self, volume_error, Place};
use crate::show;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use vexfs_client::{Client, CollectionInfo, ControlFile, Error, Transport};
use vexfs_core::engine::State;
use vexfs_core::op::{Cred, Ino, Op};
use vexfs_embedded::{Files, Host};

/// How long indexing may stand still before nobody waits for it any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// What the command is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intent {
    /// Read.
    Read,
    /// Change what is there.
    Change,
    /// Change; the directory is made if it is not there.
    Create,
}

/// Requests go straight to the core.
struct Direct {
    host: Arc<Host>,
    dir: Ino,
}

impl Transport for Direct {
    fn call(&mut self, frame: Vec<u8>) -> io::Result<Vec<u8>> {
        // Without a mount there is nobody to check permissions for but who can open the image.
        let reply = self.host.request(self.dir, Cred::default(), frame);
        reply.map_err(|e| io::Error::from_raw_os_error(e.errno()))
    }
}

/// A session.
pub struct Session {
    client: Client<Box<dyn Transport + Send>>,
    volume: Option<(PathBuf, Arc<Host>)>,
    /// The directory, in-process.
    dir: Ino,
    /// The path as it was typed.
    name: String,
    /// The directory was not there before.
    made: Option<Made>,
}

/// A directory that a session made.
enum Made {
    Mounted(PathBuf),
    Inside(Vec<u8>),
}

impl Session {
    /// Opens a session with the directory `text`.
    pub fn open(text: &OsStr, intent: Intent) -> Done<Session> {
        let name = text.to_string_lossy().into_owned();
        match Place::of(text) {
            Place::Mounted(path) => Session::mounted(&path, name, intent),
            Place::Inside { target, path } => Session::open_inside(&target, &path, name, intent),
        }
    }

    /// Opens a session with the directory that holds the file `text`; gives its name there too.
    pub fn open_parent(text: &OsStr, intent: Intent) -> Done<(Session, Vec<u8>)> {
        use std::os::unix::ffi::OsStrExt;
        let shown = text.to_string_lossy().into_owned();
        match Place::of(text) {
            Place::Mounted(path) => {
                // A symbolic link stands for the file that it leads to.
                let path = std::fs::canonicalize(&path).map_err(|e| Failure::io(&shown, &e))?;
                let (Some(dir), Some(file)) = (path.parent(), path.file_name()) else {
                    fail!(code::USAGE, "{shown}: is no file");
                };
                Ok((Session::mounted(dir, shown, intent)?, file.as_bytes().to_vec()))
            }
            Place::Inside { target, path } => {
                let cut = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
                let (dir, file) = path.split_at(cut);
                let file = file.strip_prefix(b"/").unwrap_or(file).to_vec();
                if file.is_empty() {
                    fail!(code::USAGE, "{shown}: is no file");
                }
                Ok((Session::open_inside(&target, dir, shown, intent)?, file))
            }
        }
    }

    fn mounted(path: &Path, name: String, intent: Intent) -> Done<Session> {
        if let (false, Some(fix)) = (path.exists(), place::inside_meant(path)) {
            fail!(code::USAGE, "{name}: no such directory; to mean one inside the image write {fix}");
        }
        let mut made = (intent == Intent::Create && !path.exists()).then(|| Made::Mounted(path.to_path_buf()));
        if made.is_some() {
            // Nothing is made outside of a VexFS, where it would only be in the way.
            let above = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
            match ControlFile::open(above) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && above.is_dir() => return Err(not_mounted(&name)),
                _ => {}
            }
            std::fs::create_dir(path).map_err(|e| match e.kind() {
                io::ErrorKind::NotFound => Failure::new(
                    code::NOT_FOUND,
                    format!(
                        "{name}: no such directory above it (an image or device that is not mounted: TARGET:/path)"
                    ),
                ),
                _ => Failure::io(&name, &e),
            })?;
        }
        match std::fs::metadata(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                fail!(code::NOT_FOUND, "{name}: no such directory (paths inside an image are TARGET:/path)")
            }
            Err(e) => return Err(Failure::io(&name, &e)),
            Ok(m) if !m.is_dir() => fail!(code::NOT_FOUND, "{name}: is no directory; collections are directories"),
            Ok(_) => {}
        }
        let file = ControlFile::open(path).map_err(|e| {
            if let Some(Made::Mounted(path)) = made.take() {
                drop(std::fs::remove_dir(path));
            }
            match e.kind() {
                io::ErrorKind::NotFound => not_mounted(&name),
                _ => Failure::io(&name, &e),
            }
        })?;
        Ok(Session { client: Client::new(Box::new(file)), volume: None, dir: 0, name, made })
    }

    fn open_inside(target: &Path, path: &[u8], name: String, intent: Intent) -> Done<Session> {
        let host = match intent {
            Intent::Read => place::open_to_read(target)?,
            Intent::Change | Intent::Create => place::open_to_write(target)?,
        };
        let host = Arc::new(host);
        let files = Files::new(&host);
        let mut made = None;
        let dir = match files.resolve(path, true) {
            Err(vexfs_core::Error::NotFound) if intent == Intent::Create => {
                made = Some(Made::Inside(path.to_vec()));
                files.mkdir(path, 0o755)
            }
            r => r,
        };
        let dir = match dir {
            Ok(d) if d.mode & libc::S_IFMT != libc::S_IFDIR => {
                fail!(code::NOT_FOUND, "{name}: is no directory; collections are directories")
            }
            Ok(d) => d.ino,
            Err(vexfs_core::Error::NotFound) => fail!(code::NOT_FOUND, "{name}: no such directory in the volume"),
            Err(e) => return Err(volume_error(&name, e)),
        };
        let client = Client::new(Box::new(Direct { host: host.clone(), dir }) as Box<dyn Transport + Send>);
        Ok(Session { client, volume: Some((target.to_path_buf(), host)), dir, name, made })
    }

    /// A second session with the same directory, for another thread; to be dropped before this one is closed.
    pub fn another(&self) -> Done<Session> {
        let Some((target, host)) = &self.volume else {
            return Session::mounted(Path::new(&self.name), self.name.clone(), Intent::Change);
        };
        let client = Client::new(Box::new(Direct { host: host.clone(), dir: self.dir }) as Box<dyn Transport + Send>);
        let volume = Some((target.clone(), host.clone()));
        Ok(Session { client, volume, dir: self.dir, name: self.name.clone(), made: None })
    }

    /// Sends requests; a refusal becomes a failure with the path in front.
    pub fn ask<T>(&mut self, f: impl FnOnce(&mut Client<Box<dyn Transport + Send>>) -> Result<T, Error>) -> Done<T> {
        f(&mut self.client).map_err(|e| self.failure(&e, None))
    }

    /// The same, without words for a refusal.
    pub fn try_ask<T>(
        &mut self,
        f: impl FnOnce(&mut Client<Box<dyn Transport + Send>>) -> Result<T, Error>,
    ) -> Result<T, Error> {
        f(&mut self.client)
    }

    /// The same, for requests with a filter: a mistake in it is shown at its place.
    pub fn ask_with<T>(
        &mut self,
        filter: Option<&str>,
        f: impl FnOnce(&mut Client<Box<dyn Transport + Send>>) -> Result<T, Error>,
    ) -> Done<T> {
        if filter.is_some_and(|f| f.trim().is_empty()) {
            fail!(code::USAGE, "--where: the filter is empty; leave the option out to mean all records");
        }
        f(&mut self.client).map_err(|e| self.failure(&e, filter))
    }

    /// What a refusal is for the program.
    pub fn failure(&self, e: &Error, filter: Option<&str>) -> Failure {
        let code = match e {
            Error::Request(_) => code::USAGE,
            e => e.errno().map_or(code::FAILED, code::from_errno),
        };
        let text = match e {
            Error::Io(e) => return Failure::io(&self.name, e),
            e => e.to_string(),
        };
        match (e, filter) {
            (Error::Refused(r), Some(filter)) if r.position.is_some() && text.starts_with("filter") => {
                Failure::new(code, point_at(&text, filter, r.position.unwrap_or(0) as usize))
            }
            _ => Failure::new(code, format!("{}: {text}", self.name)),
        }
    }

    /// Without a mount nobody goes on indexing when the program ends: waits until everything is in the index.
    pub fn settle(&mut self) -> Done {
        if self.volume.is_none() {
            return Ok(());
        }
        let mut bar = None;
        let (mut before, mut since) = (None, Instant::now());
        loop {
            let info = self.ask(|c| c.info())?;
            if info.pending == 0 && !info.catching_up && !info.populating {
                if let Some((_, host)) = &self.volume {
                    // The log gives its space back, which a small volume needs for the index.
                    // Should that fail, closing fails too, and says so.
                    let _ = host.call(Op::Checkpoint);
                }
                return Ok(());
            }
            // A volume that gave up indexes no more.
            let gone = self.volume.as_ref().is_some_and(|(_, h)| matches!(h.state(), State::Aborted | State::Closed));
            if before != Some(info.pending) {
                (before, since) = (Some(info.pending), Instant::now());
            }
            if gone || since.elapsed() > PATIENCE {
                return Ok(());
            }
            let all = info.records + info.files;
            let bar = bar.get_or_insert_with(|| show::progress(all, "indexing"));
            bar.set_position(all.saturating_sub(info.pending));
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// [`Session::settle`] where the directory is a collection.
    pub fn settle_collection(&mut self) -> Done {
        match self.try_ask(|c| c.info()) {
            Ok(_) => self.settle(),
            Err(_) => Ok(()),
        }
    }

    /// Says on stderr what makes every search of an image slow: records that its stored index does not hold. Whoever
    /// only reads takes them into the index in memory, and forgets that again.
    pub fn warn_unindexed(&mut self) {
        if self.volume.is_none() {
            return;
        }
        if let Some(i) = self.try_ask(|c| c.info()).ok().filter(Session::unindexed) {
            let n = show::counted(i.pending, "record");
            eprintln!("vexfs: {0}: {n} not in the stored index, every search indexes anew; once and for all: vexfs collection reindex {0}", self.name);
        }
    }

    /// Whether so much is missing in the stored index that it should be stored anew. (A little is left out whenever a
    /// volume is closed.)
    pub fn unindexed(i: &CollectionInfo) -> bool {
        i.pending > 0 && i.pending.saturating_mul(64) >= i.records + i.files
    }

    /// Whether the volume is opened in this process, not mounted.
    pub fn inside(&self) -> bool {
        self.volume.is_some()
    }

    /// The path as it was typed.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Ends a session whose request was refused: a directory that was made for it goes again.
    pub fn abandon(mut self) -> Done {
        match (self.made.take(), &self.volume) {
            (Some(Made::Mounted(path)), _) => drop(std::fs::remove_dir(path)),
            (Some(Made::Inside(path)), Some((_, host))) => drop(Files::new(host).remove(&path)),
            _ => {}
        }
        self.close()
    }

    /// Ends the session; a volume that was opened for changes is closed cleanly.
    pub fn close(self) -> Done {
        drop(self.client);
        match self.volume {
            Some((target, host)) if !host.read_only() => match Arc::try_unwrap(host) {
                Ok(host) => place::close(&target, host),
                Err(_) => Ok(()), // nobody else has it: the client is gone
            },
            _ => Ok(()),
        }
    }
}

fn not_mounted(name: &str) -> Failure {
    let text = format!("{name}: not on a mounted VexFS (mount one: vexfs mount TARGET DIR, or use TARGET:/path)");
    Failure::new(code::NOT_FOUND, text)
}

/// The message, the filter, and a caret under the byte that the message is about.
fn point_at(message: &str, filter: &str, at: usize) -> String {
    let mut at = at.min(filter.len());
    while !filter.is_char_boundary(at) {
        at -= 1;
    }
    let line = filter.replace(|c: char| c.is_control(), " ");
    let column = filter[..at].chars().count();
    format!("{message}\n  {line}\n  {}^", " ".repeat(column))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carets() {
        assert_eq!(point_at("m", "a < ", 4), "m\n  a < \n      ^");
        assert_eq!(point_at("m", "ü = = 1", 5), "m\n  ü = = 1\n      ^");
        assert_eq!(point_at("m", "a\n< b", 99), "m\n  a < b\n       ^");
    }
}

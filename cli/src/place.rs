// SPDX-License-Identifier: GPL-2.0-only
//! What a PATH on the command line means: a path on a mounted VexFS, or a path inside an image or device
//! that is opened in-process (`TARGET:/path`). A path that exists wins.

use crate::fail;
use crate::fail::{code, Done, Failure};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use vexfs_embedded::{FilesError, Host, HostOptions, OpenError, OpenErrorKind};

/// Where a path leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into the tree of mounted filesystems.
    Mounted(PathBuf),
    /// Into an image or device.
    Inside {
        /// The image or device.
        target: PathBuf,
        /// Path from the root of its volume.
        path: Vec<u8>,
    },
}

impl Place {
    /// Decides what `text` means.
    pub fn of(text: &OsStr) -> Place {
        if std::fs::symlink_metadata(text).is_err() {
            let bytes = text.as_bytes();
            for (i, pair) in bytes.windows(2).enumerate() {
                let target = PathBuf::from(OsString::from_vec(bytes[..i].to_vec()));
                if pair == b":/" && i > 0 && std::fs::metadata(&target).is_ok_and(|m| !m.is_dir()) {
                    return Place::Inside { target, path: bytes[i + 1..].to_vec() };
                }
            }
        }
        Place::Mounted(PathBuf::from(text))
    }

    /// The target and the path in it, for commands that work on `TARGET:/path` only; `tool` is what does the
    /// same on a mounted volume.
    pub fn inside(text: &OsStr, tool: &str) -> Done<(PathBuf, Vec<u8>)> {
        match Place::of(text) {
            Place::Inside { target, path } => Ok((target, path)),
            Place::Mounted(path) if path.exists() => {
                fail!(code::USAGE, "{}: is no TARGET:/path; on a mounted volume use {tool}", path.display())
            }
            Place::Mounted(path) if inside_meant(&path).is_some() => {
                let fix = inside_meant(&path).unwrap_or_default();
                fail!(code::USAGE, "{}: no such file; to mean one inside the image write {fix}", path.display())
            }
            Place::Mounted(path) => match path.as_os_str().as_bytes().windows(2).position(|w| w == b":/") {
                Some(i) => {
                    let target = String::from_utf8_lossy(&path.as_os_str().as_bytes()[..i]).into_owned();
                    fail!(code::NOT_FOUND, "{target}: no such image or device; make one: mkfs.vexfs -s SIZE {target}")
                }
                None => {
                    fail!(code::NOT_FOUND, "{}: no such file; paths inside an image are TARGET:/path", path.display())
                }
            },
        }
    }
}

/// What a path that does not exist was meant to be, if it is an image or device, a colon and no slash after it.
pub fn inside_meant(path: &Path) -> Option<String> {
    let bytes = path.as_os_str().as_bytes();
    let colons = bytes.iter().enumerate().filter(|(_, b)| **b == b':').map(|(i, _)| i);
    colons.filter(|i| *i > 0 && bytes.get(i + 1) != Some(&b'/')).find_map(|i| {
        let target = Path::new(OsStr::from_bytes(&bytes[..i]));
        let rest = String::from_utf8_lossy(&bytes[i + 1..]);
        std::fs::metadata(target).is_ok_and(|m| !m.is_dir()).then(|| format!("{}:/{rest}", target.display()))
    })
}

/// Opens a volume for reading only, so that it is not changed and others may read it too.
pub fn open_to_read(target: &Path) -> Done<Host> {
    Ok(Host::open_path(target, &HostOptions { read_only: true, ..HostOptions::default() })?)
}

/// Opens a volume for changes.
pub fn open_to_write(target: &Path) -> Done<Host> {
    let host = Host::open_path(target, &HostOptions::default())?;
    if host.read_only() {
        // Opened for writing it says why not.
        drop(host);
        vexfs_embedded::FileDevice::open(target, vexfs_embedded::Access::ReadWrite)?;
        fail!(code::DENIED, "{}: writing is not permitted; check its owner and mode, or run as root", target.display());
    }
    Ok(host)
}

/// Closes a volume cleanly.
pub fn close(target: &Path, host: Host) -> Done {
    host.close().map_err(|e| volume_error(target.display(), e))
}

/// A failure of a volume's operation on `what`.
pub fn volume_error(what: impl std::fmt::Display, e: vexfs_core::Error) -> Failure {
    Failure::new(code::from_errno(e.errno()), format!("{what}: {e}"))
}

/// A failure of a copy from or to a volume.
pub fn files_error(what: impl std::fmt::Display, e: &FilesError) -> Failure {
    match e {
        FilesError::Volume(e) => volume_error(what, *e),
        FilesError::Stream(e) => Failure::io(what, e),
    }
}

impl From<OpenError> for Failure {
    fn from(e: OpenError) -> Failure {
        let code = match e.kind() {
            OpenErrorKind::NotFound => code::NOT_FOUND,
            OpenErrorKind::Denied => code::DENIED,
            OpenErrorKind::InUse => code::BUSY,
            OpenErrorKind::NotADevice => code::USAGE,
            OpenErrorKind::Damaged | OpenErrorKind::Truncated | OpenErrorKind::Empty => code::DAMAGED,
            _ => code::FAILED,
        };
        Failure::new(code, e.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn existing_paths_win() {
        let dir = std::env::temp_dir().join(format!("vexfs-place-{}", std::process::id()));
        std::fs::create_dir_all(dir.join("a:/b")).unwrap();
        std::fs::write(dir.join("v"), "x").unwrap();
        std::fs::write(dir.join("v:"), "x").unwrap();
        let of = |s: &str| Place::of(dir.join(s).as_os_str());
        let inside = |t: &str, p: &str| Place::Inside { target: dir.join(t), path: p.into() };
        assert_eq!(of("a:/b"), Place::Mounted(dir.join("a:/b")));
        assert_eq!(of("v:/x/y"), inside("v", "/x/y"));
        assert_eq!(of("v:/"), inside("v", "/"));
        assert_eq!(of("v::/x"), inside("v:", "/x"));
        assert_eq!(of("v:/x:/y"), inside("v", "/x:/y"));
        assert_eq!(of("nothing:/x"), Place::Mounted(dir.join("nothing:/x")));
        assert_eq!(of("a:/c"), Place::Mounted(dir.join("a:/c")));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}

// SPDX-License-Identifier: MIT OR Apache-2.0
//! How frames travel.

use crate::wire;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::path::Path;

/// Carries request frames to a directory of a volume and brings the replies.
pub trait Transport {
    /// Sends a request and waits for its reply.
    fn call(&mut self, frame: Vec<u8>) -> io::Result<Vec<u8>>;
}

impl<T: Transport + ?Sized> Transport for Box<T> {
    fn call(&mut self, frame: Vec<u8>) -> io::Result<Vec<u8>> {
        (**self).call(frame)
    }
}

impl<T: Transport + ?Sized> Transport for &mut T {
    fn call(&mut self, frame: Vec<u8>) -> io::Result<Vec<u8>> {
        (**self).call(frame)
    }
}

/// The control file of a directory of a mounted volume.
#[derive(Debug)]
pub struct ControlFile {
    file: File,
    /// The file system is mounted read-only: requests go by ioctl.
    read_only: bool,
}

/// EROFS of Linux.
const READ_ONLY: i32 = 30;

mod sys {
    use std::ffi::{c_int, c_ulong};
    extern "C" {
        pub fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    }
}

/// Sends a piece of a request of at most [`wire::IOCTL_MAX`] bytes.
#[allow(unsafe_code)]
fn send(file: &File, piece: &[u8]) -> io::Result<()> {
    loop {
        // SAFETY: the number says how many bytes the kernel reads, which are those of `piece`.
        let r = unsafe { sys::ioctl(file.as_raw_fd(), wire::ioctl_request(piece.len()).into(), piece.as_ptr()) };
        if r >= 0 {
            return Ok(());
        }
        let e = io::Error::last_os_error();
        if e.kind() != io::ErrorKind::Interrupted {
            return Err(e);
        }
    }
}

impl ControlFile {
    /// Opens a session of its own on the directory `dir`.
    pub fn open(dir: impl AsRef<Path>) -> io::Result<ControlFile> {
        let path = dir.as_ref().join(wire::CONTROL_FILE);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => Ok(ControlFile { file, read_only: false }),
            Err(e) if e.raw_os_error() == Some(READ_ONLY) => {
                Ok(ControlFile { file: File::open(&path)?, read_only: true })
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && dir.as_ref().is_dir() => {
                let text = format!("{}: not on a VexFS volume (it has no control file)", dir.as_ref().display());
                Err(io::Error::new(io::ErrorKind::NotFound, text))
            }
            Err(e) => Err(e),
        }
    }

    /// A session on a file that speaks the protocol.
    pub fn from_file(file: File) -> ControlFile {
        ControlFile { file, read_only: false }
    }
}

impl Transport for ControlFile {
    fn call(&mut self, frame: Vec<u8>) -> io::Result<Vec<u8>> {
        if self.read_only {
            for piece in frame.chunks(wire::IOCTL_MAX) {
                send(&self.file, piece)?;
            }
        } else {
            self.file.write_all(&frame)?;
        }
        drop(frame);
        let mut reply = vec![0; 64 << 10];
        let mut have = 0;
        let mut need = 4;
        while have < need {
            match self.file.read(&mut reply[have..]) {
                Ok(0) => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the reply ends too early")),
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            if need == 4 && have >= 4 {
                need = u32::from_le_bytes([reply[0], reply[1], reply[2], reply[3]]) as usize;
                if !(wire::ReplyHead::SIZE..=wire::FRAME_MAX).contains(&need) {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "the reply has an impossible length"));
                }
                reply.resize(need.max(have), 0);
            }
        }
        reply.truncate(have);
        Ok(reply)
    }
}

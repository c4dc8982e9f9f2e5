// SPDX-License-Identifier: MIT OR Apache-2.0
//! What can go wrong.

use crate::wire;
use std::{fmt, io};

/// Why a request failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// The request or the reply could not be carried.
    Io(io::Error),
    /// The volume refused the request.
    Refused(Refused),
    /// The request cannot be put into a frame: a mistake of the caller.
    Request(String),
    /// The reply is not one of this protocol.
    Protocol(&'static str),
}

/// A request that the volume refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Linux error number, positive.
    pub errno: i32,
    /// What is wrong, one line.
    pub message: String,
    /// The byte of the filter text, or the number of the vector, query or record that it is about.
    pub position: Option<u32>,
    /// Records of the request that were done before.
    pub done: u64,
}

impl Error {
    /// The Linux error number, if the failure has one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Io(e) => e.raw_os_error(),
            Error::Refused(r) => Some(r.errno),
            Error::Request(_) => Some(22),
            Error::Protocol(_) => None,
        }
    }

    pub(crate) fn request(text: impl Into<String>) -> Error {
        Error::Request(text.into())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Io(e) => e.fmt(f),
            Error::Refused(r) => r.fmt(f),
            Error::Request(t) => f.write_str(t),
            Error::Protocol(t) => write!(f, "the reply is not of protocol version {}: {t}", wire::VERSION),
        }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.done > 0 {
            write!(f, " ({} records were done before)", self.done)?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::Io(e) => Some(e),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(e: io::Error) -> Error {
        Error::Io(e)
    }
}

impl From<Error> for io::Error {
    fn from(e: Error) -> io::Error {
        match e {
            Error::Io(e) => e,
            Error::Protocol(_) => io::Error::new(io::ErrorKind::InvalidData, e.to_string()),
            _ => io::Error::other(e.to_string()),
        }
    }
}

// SPDX-License-Identifier: GPL-2.0-only
//! NumPy files. The header is parsed by `npyz`; rows are read here, because a file may be larger than memory
//! (C order) and because its length is compared with what the header promises first.

use super::{check_dim, open, Rows};
use crate::fail;
use crate::fail::{code, Done, Failure};
use npyz::{DType, Endianness, NpyHeader, Order, TypeChar, WriterBuilder};
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek};
use std::path::{Path, PathBuf};

/// Longest header that is read (NumPy writes about 100 bytes).
const HEADER_MAX: u64 = 1 << 20;

/// Type of the numbers in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Number {
    kind: TypeChar,
    size: usize,
    big: bool,
}

/// A matrix in a file.
pub struct Npy {
    path: PathBuf,
    file: BufReader<File>,
    number: Number,
    rows: u64,
    dim: usize,
    /// Rows handed out so far.
    at: u64,
    /// The whole matrix turned to row order, if the file is in Fortran order.
    turned: Option<Vec<f32>>,
}

/// Reads the header, and checks it against the length of the file. Gives the shape and the number type.
fn header(path: &Path, file: &mut BufReader<File>, file_len: u64) -> Done<(Vec<u64>, Order, Number)> {
    let name = path.display();
    // npyz multiplies the shape up without looking for overflow, so a senseless one is sorted out beforehand.
    let head = match sane_shape(file).and_then(|()| NpyHeader::from_reader(file.by_ref().take(HEADER_MAX))) {
        Ok(h) => h,
        Err(e) => fail!(code::USAGE, "{name}: not a .npy file, or its header is damaged ({e})"),
    };
    let number = match head.dtype() {
        DType::Plain(t) => {
            Number { kind: t.type_char(), size: t.num_bytes().unwrap_or(0), big: t.endianness() == Endianness::Big }
        }
        other => fail!(code::USAGE, "{name}: holds structures ({}), plain numbers are needed", other.descr()),
    };
    if number.size == 0 || matches!(number.kind, TypeChar::Object) {
        fail!(code::USAGE, "{name}: holds objects ({}), plain numbers are needed", number.kind.to_str());
    }
    let shape = head.shape().to_vec();
    let start = file.stream_position().map_err(|e| Failure::io(&name, &e))?;
    let size = shape.iter().try_fold(number.size as u64, |n, x| n.checked_mul(*x));
    match size {
        Some(n) if number.size > 0 && start.checked_add(n).is_some_and(|end| end <= file_len) => {}
        _ => fail!(
            code::USAGE,
            "{name}: truncated: its header promises the shape {shape:?}, {} bytes of data, but {} are there; copy or write it again",
            size.map_or_else(|| "too many".to_string(), |n| n.to_string()),
            file_len.saturating_sub(start)
        ),
    }
    Ok((shape, head.order(), number))
}

/// Refuses a header whose numbers multiply to more than 2^62, and goes back to the start of the file.
fn sane_shape(file: &mut BufReader<File>) -> std::io::Result<()> {
    let mut start = Vec::new();
    file.by_ref().take(HEADER_MAX).read_to_end(&mut start)?;
    file.rewind()?;
    let end = start.iter().position(|b| *b == b'\n').unwrap_or(start.len());
    let text = String::from_utf8_lossy(&start[..end]);
    let shape = text.split("'shape'").nth(1).unwrap_or("");
    let inner = shape.split('(').nth(1).unwrap_or("").split(')').next().unwrap_or("");
    let mut product = 1u128;
    for word in inner.split(',').map(|w| w.trim().trim_end_matches('L')).filter(|w| !w.is_empty()) {
        let n = word.parse::<u64>().map(u128::from).unwrap_or(u128::MAX);
        product = product.saturating_mul(n.max(1));
    }
    if product > 1 << 62 {
        return Err(std::io::Error::new(
            std::io::ErrorKind::InvalidData,
            format!("the shape ({inner}) is larger than any file"),
        ));
    }
    Ok(())
}

impl Npy {
    /// Opens a matrix, or one vector.
    pub fn open(path: &Path) -> Done<Npy> {
        let (file, len) = open(path)?;
        let mut file = BufReader::with_capacity(1 << 20, file);
        let (shape, order, number) = header(path, &mut file, len)?;
        if number.kind != TypeChar::Float || !matches!(number.size, 4 | 8) {
            fail!(
                code::USAGE,
                "{}: its numbers are {}{}, float32 or float64 is needed (in NumPy: a.astype('float32'))",
                path.display(),
                number.kind.to_str(),
                number.size
            );
        }
        let (rows, dim) = match shape[..] {
            [dim] => (1, dim),
            [rows, dim] => (rows, dim),
            _ => {
                fail!(code::USAGE, "{}: has the shape {shape:?}, a matrix (rows, dimension) is needed", path.display())
            }
        };
        let dim = check_dim(path, dim)?;
        let mut npy = Npy { path: path.to_path_buf(), file, number, rows, dim, at: 0, turned: None };
        if order == Order::Fortran && rows > 1 {
            npy.turn()?;
        }
        Ok(npy)
    }

    /// Reads `n` numbers as f32.
    fn numbers(&mut self, n: usize, out: &mut Vec<f32>) -> Done {
        let mut raw = vec![0; n * self.number.size];
        self.file.read_exact(&mut raw).map_err(|e| Failure::io(self.path.display(), &e))?;
        match (self.number.size, self.number.big) {
            (4, false) => out.extend(raw.as_chunks_4().map(f32::from_le_bytes)),
            (4, true) => out.extend(raw.as_chunks_4().map(f32::from_be_bytes)),
            (_, false) => out.extend(raw.as_chunks_8().map(|b| f64::from_le_bytes(b) as f32)),
            (_, true) => out.extend(raw.as_chunks_8().map(|b| f64::from_be_bytes(b) as f32)),
        }
        Ok(())
    }

    /// Reads a matrix in Fortran order (column after column) and turns it.
    fn turn(&mut self) -> Done {
        let rows = self.rows as usize; // rows * dim numbers are in the file, see `header`
        let mut turned = Vec::new();
        if turned.try_reserve_exact(rows * self.dim).is_err() {
            fail!(
                code::FULL,
                "{}: is in Fortran order and too large to turn in memory; save it with numpy.ascontiguousarray(a)",
                self.path.display()
            );
        }
        turned.resize(rows * self.dim, 0.0);
        let mut column = Vec::with_capacity(rows);
        for c in 0..self.dim {
            column.clear();
            self.numbers(rows, &mut column)?;
            for (r, x) in column.iter().enumerate() {
                turned[r * self.dim + c] = *x;
            }
        }
        self.turned = Some(turned);
        Ok(())
    }
}

/// Fixed-size pieces of a byte slice (`slice::as_chunks` is younger than our minimum Rust version).
trait Chunks {
    fn as_chunks_4(&self) -> impl Iterator<Item = [u8; 4]>;
    fn as_chunks_8(&self) -> impl Iterator<Item = [u8; 8]>;
}

impl Chunks for Vec<u8> {
    fn as_chunks_4(&self) -> impl Iterator<Item = [u8; 4]> {
        self.chunks_exact(4).map(|b| [b[0], b[1], b[2], b[3]])
    }
    fn as_chunks_8(&self) -> impl Iterator<Item = [u8; 8]> {
        self.chunks_exact(8).map(|b| [b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]])
    }
}

impl Rows for Npy {
    fn dim(&self) -> usize {
        self.dim
    }
    fn rows(&self) -> u64 {
        self.rows
    }
    fn next(&mut self, max: usize, out: &mut Vec<f32>) -> Done {
        out.clear();
        let n = (self.rows - self.at).min(max as u64) as usize;
        if let Some(turned) = &self.turned {
            let start = self.at as usize * self.dim;
            out.extend_from_slice(&turned[start..start + n * self.dim]);
        } else if n > 0 {
            out.reserve(n * self.dim);
            self.numbers(n * self.dim, out)?;
        }
        self.at += n as u64;
        Ok(())
    }
}

/// Reads a column of integers (ids).
pub fn integers(path: &Path) -> Done<Vec<u64>> {
    let (file, len) = open(path)?;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let (shape, _, number) = header(path, &mut file, len)?;
    let count: u64 = match shape[..] {
        [n] | [n, 1] | [1, n] => n,
        _ => fail!(code::USAGE, "{}: has the shape {shape:?}, one column of ids is needed", path.display()),
    };
    if !matches!(number.kind, TypeChar::Int | TypeChar::Uint) || !matches!(number.size, 1 | 2 | 4 | 8) {
        fail!(
            code::USAGE,
            "{}: its numbers are {}{}, ids are integers",
            path.display(),
            number.kind.to_str(),
            number.size
        );
    }
    let mut out = Vec::with_capacity(count as usize);
    let mut raw = [0; 8];
    for row in 0..count {
        let raw = &mut raw[..number.size];
        file.read_exact(raw).map_err(|e| Failure::io(path.display(), &e))?;
        if number.big {
            raw.reverse();
        }
        let mut wide = [if number.kind == TypeChar::Int && raw[number.size - 1] & 0x80 != 0 { 0xff } else { 0 }; 8];
        wide[..number.size].copy_from_slice(raw);
        if number.kind == TypeChar::Int && i64::from_le_bytes(wide) < 0 {
            fail!(code::USAGE, "{}: row {row}: the id {} is negative", path.display(), i64::from_le_bytes(wide));
        }
        out.push(u64::from_le_bytes(wide));
    }
    Ok(out)
}

/// Writes a .npy file, element after element.
pub struct NpyWriter<T: npyz::AutoSerialize> {
    path: PathBuf,
    writer: npyz::NpyWriter<T, BufWriter<File>>,
}

impl<T: npyz::AutoSerialize> NpyWriter<T> {
    /// A new file for an array of this shape.
    pub fn create(path: &Path, shape: &[u64]) -> Done<NpyWriter<T>> {
        let file = File::create(path).map_err(|e| Failure::io(path.display(), &e))?;
        let writer = npyz::WriteOptions::new()
            .default_dtype()
            .shape(shape)
            .writer(BufWriter::with_capacity(1 << 20, file))
            .begin_nd()
            .map_err(|e| Failure::io(path.display(), &e))?;
        Ok(NpyWriter { path: path.to_path_buf(), writer })
    }

    /// Appends an element.
    pub fn push(&mut self, x: &T) -> Done {
        self.writer.push(x).map_err(|e| Failure::io(self.path.display(), &e))
    }

    /// Ends the file.
    pub fn finish(self) -> Done {
        self.writer.finish().map_err(|e| Failure::io(self.path.display(), &e))
    }
}

#[cfg(test)]
mod tests {
    use super::super::DIM_MAX;
    use super::*;

    /// A .npy file as NumPy writes it.
    fn npy(descr: &str, fortran: bool, shape: &str, data: &[u8]) -> Vec<u8> {
        let order = if fortran { "True" } else { "False" };
        let mut head = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}").into_bytes();
        while (10 + head.len() + 1) % 64 != 0 {
            head.push(b' ');
        }
        head.push(b'\n');
        let mut b = b"\x93NUMPY\x01\x00".to_vec();
        b.extend((head.len() as u16).to_le_bytes());
        b.extend(head);
        b.extend(data);
        b
    }

    fn bytes<T: Copy, const N: usize>(v: &[T], f: fn(T) -> [u8; N]) -> Vec<u8> {
        v.iter().flat_map(|x| f(*x)).collect()
    }

    fn file(name: &str, b: &[u8]) -> PathBuf {
        let p = std::env::temp_dir().join(format!("vexfs-npy-{}-{name}", std::process::id()));
        std::fs::write(&p, b).unwrap();
        p
    }

    fn read(name: &str, b: &[u8]) -> Result<(usize, u64, Vec<f32>), String> {
        let p = file(name, b);
        let r = (|| {
            let mut n = Npy::open(&p)?;
            let (mut all, mut part) = (Vec::new(), Vec::new());
            loop {
                n.next(2, &mut part)?;
                if part.is_empty() {
                    return Ok((n.dim(), n.rows(), all));
                }
                all.extend_from_slice(&part);
            }
        })();
        std::fs::remove_file(&p).unwrap();
        r.map_err(|e: Failure| e.text)
    }

    #[test]
    fn orders_and_types() {
        let want = vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        let by_columns = [1.0, 3.0, 5.0, 2.0, 4.0, 6.0];
        let f64s: Vec<f64> = want.iter().map(|x| f64::from(*x)).collect();
        let good = Ok((2, 3, want.clone()));
        assert_eq!(read("c4", &npy("<f4", false, "(3, 2)", &bytes(&want, f32::to_le_bytes))), good);
        assert_eq!(read("b4", &npy(">f4", false, "(3, 2)", &bytes(&want, f32::to_be_bytes))), good);
        assert_eq!(read("c8", &npy("<f8", false, "(3, 2)", &bytes(&f64s, f64::to_le_bytes))), good);
        assert_eq!(read("fo", &npy("<f4", true, "(3, 2)", &bytes(&by_columns, f32::to_le_bytes))), good);
        assert_eq!(read("1d", &npy("<f4", false, "(6,)", &bytes(&want, f32::to_le_bytes))), Ok((6, 1, want)));
        assert_eq!(read("none", &npy("<f4", false, "(0, 2)", &[])), Ok((2, 0, vec![])));
    }

    #[test]
    fn refusals() {
        let data = bytes(&[1f32; 6], f32::to_le_bytes);
        for (name, b, say) in [
            ("short", npy("<f4", false, "(4, 2)", &data), "truncated"),
            ("huge", npy("<f4", false, "(9223372036854775807, 9)", &data), "larger than any file"),
            ("long", npy("<f4", false, "(4000000000000, 2)", &data), "truncated"),
            ("int", npy("<i4", false, "(3, 2)", &data), "float32 or float64 is needed"),
            ("half", npy("<f2", false, "(3, 4)", &data), "float32 or float64 is needed"),
            ("cube", npy("<f4", false, "(3, 2, 1)", &data), "a matrix (rows, dimension) is needed"),
            ("dim0", npy("<f4", false, "(3, 0)", &data), "dimension 0"),
            ("text", b"hello, this is no array".to_vec(), "not a .npy file"),
            ("empty", vec![], "not a .npy file"),
            ("cut", npy("<f4", false, "(3, 2)", &data)[..20].to_vec(), "not a .npy file"),
        ] {
            let e = read(name, &b).unwrap_err();
            assert!(e.contains(say), "{name}: {e}");
        }
    }

    #[test]
    fn columns_of_ids() {
        let get = |name: &str, b: &[u8]| {
            let p = file(name, b);
            let r = integers(&p).map_err(|e| e.text);
            std::fs::remove_file(&p).unwrap();
            r
        };
        assert_eq!(
            get("i8", &npy("<i8", false, "(2,)", &bytes(&[5i64, 1 << 40], i64::to_le_bytes))),
            Ok(vec![5, 1 << 40])
        );
        assert_eq!(
            get("u2", &npy(">u2", false, "(2, 1)", &bytes(&[5u16, 65535], u16::to_be_bytes))),
            Ok(vec![5, 65535])
        );
        let e = get("neg", &npy("<i4", false, "(2,)", &bytes(&[5i32, -1], i32::to_le_bytes))).unwrap_err();
        assert!(e.contains("row 1: the id -1 is negative"), "{e}");
        assert!(get("flt", &npy("<f4", false, "(1,)", &[0; 4])).unwrap_err().contains("ids are integers"));
    }

    #[test]
    fn what_is_written_is_read() {
        let p = file("w", &[]);
        let mut w = NpyWriter::<f32>::create(&p, &[2, DIM_MAX as u64]).unwrap();
        for i in 0..2 * DIM_MAX {
            w.push(&(i as f32)).unwrap();
        }
        w.finish().unwrap();
        let mut n = Npy::open(&p).unwrap();
        let mut out = Vec::new();
        n.next(5, &mut out).unwrap();
        assert_eq!((n.dim(), out.len(), out[DIM_MAX + 7]), (DIM_MAX, 2 * DIM_MAX, (DIM_MAX + 7) as f32));
        std::fs::remove_file(&p).unwrap();
    }
}

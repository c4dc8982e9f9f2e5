// SPDX-License-Identifier: GPL-2.0-only
//! Declares on-disk structures once: a value with `parse` and `emit`, and the table of its fields
//! from which DESIGN.md, the checker's tests and the fuzzers are generated.

/// One field of an on-disk structure.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// Name in the code.
    pub name: &'static str,
    /// Byte offset in the structure.
    pub offset: usize,
    /// Size in bytes.
    pub size: usize,
    /// Type: little-endian integers or bytes.
    pub ty: &'static str,
    /// Meaning.
    pub doc: &'static str,
}

/// One on-disk structure, for documentation and generated tests.
#[derive(Clone, Copy, Debug)]
pub struct Table {
    /// Name in the code.
    pub name: &'static str,
    /// Size in bytes of the fixed part.
    pub size: usize,
    /// Where it stands and what follows it.
    pub doc: &'static str,
    /// Its fields, in order of offset.
    pub fields: &'static [Field],
}

/// A fixed-size value in little-endian bytes.
pub trait Wire: Copy {
    /// All bytes zero.
    const ZERO: Self;
    /// Reads the value at `off`; `None` if it does not fit.
    fn get(b: &[u8], off: usize) -> Option<Self>;
    /// Writes the value at `off`; `None` if it does not fit.
    fn put(self, b: &mut [u8], off: usize) -> Option<()>;
}

macro_rules! wire_int {
    ($($t:ty),*) => { $(
        impl Wire for $t {
            const ZERO: Self = 0;
            fn get(b: &[u8], off: usize) -> Option<Self> {
                let end = off.checked_add(core::mem::size_of::<$t>())?;
                Some(<$t>::from_le_bytes(b.get(off..end)?.try_into().ok()?))
            }
            fn put(self, b: &mut [u8], off: usize) -> Option<()> {
                let end = off.checked_add(core::mem::size_of::<$t>())?;
                b.get_mut(off..end)?.copy_from_slice(&self.to_le_bytes());
                Some(())
            }
        }
    )* };
}
wire_int!(u8, u16, u32, u64, i64);

impl<const N: usize> Wire for [u8; N] {
    const ZERO: Self = [0; N];
    fn get(b: &[u8], off: usize) -> Option<Self> {
        b.get(off..off.checked_add(N)?)?.try_into().ok()
    }
    fn put(self, b: &mut [u8], off: usize) -> Option<()> {
        b.get_mut(off..off.checked_add(N)?)?.copy_from_slice(&self);
        Some(())
    }
}

/// Declares an on-disk structure: see the uses in this folder.
macro_rules! layout {
    ($(#[doc = $m:literal])* pub struct $name:ident [$size:literal] {
        $( $off:literal $field:ident : $ty:ty = $doc:literal ),* $(,)?
    }) => {
        $(#[doc = $m])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name { $( #[doc = $doc] pub $field: $ty ),* }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: <$ty as $crate::format::Wire>::ZERO ),* }
            }
        }

        impl $name {
            /// Size in bytes of the fixed part.
            pub const SIZE: usize = $size;
            /// The fields, for generated documentation and tests.
            pub const TABLE: $crate::format::Table = $crate::format::Table {
                name: stringify!($name),
                size: $size,
                doc: concat!($($m),*),
                fields: &[ $( $crate::format::Field {
                    name: stringify!($field),
                    offset: $off,
                    size: core::mem::size_of::<$ty>(),
                    ty: stringify!($ty),
                    doc: $doc,
                } ),* ],
            };
            /// Reads the structure from the start of `b`; `None` if `b` is too short.
            pub fn parse(b: &[u8]) -> Option<Self> {
                Some(Self { $( $field: <$ty as $crate::format::Wire>::get(b, $off)? ),* })
            }
            /// Like `parse`, but into a value that is there: for large structures and small stacks.
            pub fn load(&mut self, b: &[u8]) -> Option<()> {
                $( self.$field = $crate::format::Wire::get(b, $off)?; )*
                Some(())
            }
            /// Writes the structure to the start of `b`; `None` if `b` is too short.
            pub fn emit(&self, b: &mut [u8]) -> Option<()> {
                $( $crate::format::Wire::put(self.$field, b, $off)?; )*
                Some(())
            }
        }

        // Offsets and sizes add up, without gaps that nobody named.
        #[allow(clippy::arithmetic_side_effects)] // evaluated by the compiler
        const _: () = {
            let mut at = 0;
            $( assert!($off == at); at += core::mem::size_of::<$ty>(); )*
            assert!(at == $size);
        };
    };
}
pub(crate) use layout;

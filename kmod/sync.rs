// SPDX-License-Identifier: GPL-2.0-only
//! Locks, completions and the reclaim scope of the kernel, as guards. Each lives in memory that does not move
//! (`init` is called where it stays).

use crate::bindings as c;
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// A structure of the kernel that it changes behind our back. Starts as zeros, like the kernel's own memory.
#[repr(transparent)]
pub(crate) struct Opaque<T>(UnsafeCell<T>);

impl<T> Opaque<T> {
    pub(crate) const fn zeroed() -> Opaque<T> {
        // SAFETY: structures of the kernel are plain data for which zeros are a value.
        Opaque(UnsafeCell::new(unsafe { core::mem::MaybeUninit::zeroed().assume_init() }))
    }

    pub(crate) fn get(&self) -> *mut T {
        self.0.get()
    }
}

/// A value behind a reader-writer semaphore.
pub(crate) struct RwSem<T> {
    sem: Opaque<c::rw_semaphore>,
    value: UnsafeCell<T>,
}

// SAFETY: the semaphore lets one writer or many readers at the value.
unsafe impl<T: Send> Send for RwSem<T> {}
// SAFETY: as above; readers share `&T`.
unsafe impl<T: Send + Sync> Sync for RwSem<T> {}

impl<T> RwSem<T> {
    pub(crate) fn new(value: T) -> RwSem<T> {
        RwSem { sem: Opaque::zeroed(), value: UnsafeCell::new(value) }
    }

    /// To be called once, where it stays.
    pub(crate) fn init(&self) {
        // SAFETY: memory for a semaphore that nobody uses yet.
        unsafe { c::vexfs_init_rwsem(self.sem.get()) }
    }

    pub(crate) fn read(&self) -> Read<'_, T> {
        // SAFETY: initialised; released by the guard.
        unsafe { c::down_read(self.sem.get()) };
        Read(self)
    }

    pub(crate) fn write(&self) -> Write<'_, T> {
        // SAFETY: initialised; released by the guard.
        unsafe { c::down_write(self.sem.get()) };
        Write(self)
    }
}

impl<T> RwSem<T> {
    /// The exclusive side, if nobody has the lock.
    pub(crate) fn try_write(&self) -> Option<Write<'_, T>> {
        // SAFETY: initialised; released by the guard.
        (unsafe { c::down_write_trylock(self.sem.get()) } != 0).then(|| Write(self))
    }
}

/// The shared side is held.
pub(crate) struct Read<'a, T>(&'a RwSem<T>);
/// The exclusive side is held.
pub(crate) struct Write<'a, T>(&'a RwSem<T>);

impl<T> Deref for Read<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held for reading: nobody writes.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> Deref for Write<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held alone.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Write<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held alone.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Read<'_, T> {
    fn drop(&mut self) {
        // SAFETY: taken by this guard.
        unsafe { c::up_read(self.0.sem.get()) }
    }
}

impl<T> Drop for Write<'_, T> {
    fn drop(&mut self) {
        // SAFETY: taken by this guard.
        unsafe { c::up_write(self.0.sem.get()) }
    }
}

/// A value behind a mutex.
pub(crate) struct Mutex<T> {
    mutex: Opaque<c::mutex>,
    value: UnsafeCell<T>,
}

// SAFETY: the mutex lets one at the value.
unsafe impl<T: Send> Send for Mutex<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Mutex<T> {
        Mutex { mutex: Opaque::zeroed(), value: UnsafeCell::new(value) }
    }

    /// To be called once, where it stays.
    pub(crate) fn init(&self) {
        // SAFETY: memory for a mutex that nobody uses yet.
        unsafe { c::vexfs_mutex_init(self.mutex.get()) }
    }

    /// The same for one that is taken while one of the others is held: lockdep tells the two kinds apart.
    pub(crate) fn init_inner(&self) {
        // SAFETY: memory for a mutex that nobody uses yet.
        unsafe { c::vexfs_mutex_init_inner(self.mutex.get()) }
    }

    /// Waits; none if a signal that ends the process came first.
    pub(crate) fn lock_killable(&self) -> Option<Locked<'_, T>> {
        // SAFETY: initialised; released by the guard.
        unsafe { c::vexfs_mutex_lock_killable(self.mutex.get()) }.then(|| Locked(self))
    }

    pub(crate) fn lock(&self) -> Locked<'_, T> {
        // SAFETY: initialised; released by the guard.
        unsafe { c::vexfs_mutex_lock(self.mutex.get()) };
        Locked(self)
    }
}

/// The mutex is held.
pub(crate) struct Locked<'a, T>(&'a Mutex<T>);

impl<T> Deref for Locked<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: held alone.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Locked<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: held alone.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Locked<'_, T> {
    fn drop(&mut self) {
        // SAFETY: taken by this guard.
        unsafe { c::vexfs_mutex_unlock(self.0.mutex.get()) }
    }
}

/// One thread waits for an event.
pub(crate) struct Completion(Opaque<c::completion>);

// SAFETY: made for use by several threads.
unsafe impl Send for Completion {}
// SAFETY: as above.
unsafe impl Sync for Completion {}

impl Completion {
    pub(crate) const fn new() -> Completion {
        Completion(Opaque::zeroed())
    }

    /// To be called once, where it stays.
    pub(crate) fn init(&self) {
        // SAFETY: memory for a completion that nobody uses yet.
        unsafe { c::vexfs_init_completion(self.0.get()) }
    }

    /// Waits; false if a signal that ends the process came first.
    pub(crate) fn wait_killable(&self) -> bool {
        // SAFETY: initialised; process context.
        unsafe { c::wait_for_completion_killable(self.0.get()) == 0 }
    }

    pub(crate) fn wait(&self) {
        // SAFETY: initialised; process context.
        unsafe { c::wait_for_completion(self.0.get()) }
    }

    pub(crate) fn complete(&self) {
        // SAFETY: initialised.
        unsafe { c::complete(self.0.get()) }
    }
}

/// While it lives, this thread's allocations do not call back into file systems: the core's lock may be held, or folios that
/// reclaim would wait for.
pub(crate) struct NoFs(kernel::ffi::c_uint);

impl NoFs {
    pub(crate) fn enter() -> NoFs {
        // SAFETY: a flag of the current task, put back by the drop.
        NoFs(unsafe { c::vexfs_nofs_save() })
    }
}

impl Drop for NoFs {
    fn drop(&mut self) {
        // SAFETY: what `enter` saved, on the same task.
        unsafe { c::vexfs_nofs_restore(self.0) }
    }
}

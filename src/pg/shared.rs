//! One table in shared memory: a header and as many rows as a setting says, behind one lock.
//!
//! pgrx's own `PgLwLock` needs a size that is known when the library is compiled, and builds the first value on the stack.

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::alloc::Layout;
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

/// What lies in shared memory. The rows follow the header.
#[repr(C)]
struct Area<H, R> {
    lock: *mut pg_sys::LWLock,
    rows: *mut R,
    length: usize,
    header: UnsafeCell<H>,
}

/// A header `H` and rows `R`: plain values without destructors, which every process of the server sees at the same address.
#[derive(Debug)]
pub(crate) struct SharedTable<H, R> {
    name: &'static CStr,
    area: AtomicPtr<Area<H, R>>,
}

/// Gives the lock back, also while a panic unwinds.
struct Locked(*mut pg_sys::LWLock);

impl Drop for Locked {
    fn drop(&mut self) {
        // SAFETY: the lock is held by this process since `lock`.
        unsafe { pg_sys::LWLockRelease(self.0) }
    }
}

impl<H: Copy + Default + Send + 'static, R: Copy + Default + Send + 'static> SharedTable<H, R> {
    pub(crate) const fn new(name: &'static CStr) -> Self {
        Self { name, area: AtomicPtr::new(ptr::null_mut()) }
    }

    fn layout(length: usize) -> (Layout, usize) {
        let rows = Layout::array::<R>(length).expect("the setting limits the number of rows");
        Layout::new::<Area<H, R>>().extend(rows).expect("the setting limits the number of rows")
    }

    fn request(&self, length: usize) {
        // SAFETY: called from shmem_request_hook only.
        unsafe {
            pg_sys::RequestAddinShmemSpace(Self::layout(length).0.size());
            pg_sys::RequestNamedLWLockTranche(self.name.as_ptr(), 1);
        }
    }

    /// Only the postmaster comes here, at its start and after a crash; all others inherit the pointer.
    fn create(&self, length: usize) {
        let (layout, offset) = Self::layout(length);
        // SAFETY: called from shmem_startup_hook only, with the length of `request`; the memory is aligned to a cache line and as
        // large as the layout says, and nobody else knows it yet.
        unsafe {
            let mut found = false;
            let memory = pg_sys::ShmemInitStruct(self.name.as_ptr(), layout.size(), &mut found).cast::<u8>();
            let area = memory.cast::<Area<H, R>>();
            if !found {
                let rows = memory.add(offset).cast::<R>();
                for at in 0..length {
                    rows.add(at).write(R::default());
                }
                let lock = &raw mut (*pg_sys::GetNamedLWLockTranche(self.name.as_ptr())).lock;
                area.write(Area { lock, rows, length, header: UnsafeCell::new(H::default()) });
            }
            self.area.store(area, Ordering::Release);
        }
    }

    /// Is there shared memory, that is: was the library preloaded?
    pub(crate) fn exists(&self) -> bool {
        !self.area.load(Ordering::Acquire).is_null()
    }

    /// Reads under the lock. `None` without preload. The closure must not call PostgreSQL: nothing may fail or wait under the lock.
    pub(crate) fn read<T>(&self, look: impl FnOnce(&H, &[R]) -> T) -> Option<T> {
        let area = self.area.load(Ordering::Acquire);
        // SAFETY: `create` made the area and it stays for the life of the process; the lock keeps writers out.
        unsafe {
            let area = area.as_ref()?;
            let _locked = lock(area.lock, pg_sys::LWLockMode::LW_SHARED);
            Some(look(&*area.header.get(), std::slice::from_raw_parts(area.rows, area.length)))
        }
    }

    /// Changes it under the lock. `None` without preload. The closure must not call PostgreSQL: nothing may fail or wait under the
    /// lock.
    pub(crate) fn write<T>(&self, change: impl FnOnce(&mut H, &mut [R]) -> T) -> Option<T> {
        let area = self.area.load(Ordering::Acquire);
        // SAFETY: as in `read`; the lock keeps everybody else out.
        unsafe {
            let area = area.as_ref()?;
            let _locked = lock(area.lock, pg_sys::LWLockMode::LW_EXCLUSIVE);
            Some(change(&mut *area.header.get(), std::slice::from_raw_parts_mut(area.rows, area.length)))
        }
    }
}

fn lock(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> Locked {
    // SAFETY: a lock of a named tranche, not held by this process: the closures that run under it call nothing of ours.
    unsafe { pg_sys::LWLockAcquire(lock, mode) };
    Locked(lock)
}

/// What PostgreSQL's hooks call: the table with its length, without its types.
trait Create: Sync {
    fn request(&self, length: usize);
    fn create(&self, length: usize);
}

impl<H: Copy + Default + Send + 'static, R: Copy + Default + Send + 'static> Create for SharedTable<H, R> {
    fn request(&self, length: usize) {
        SharedTable::request(self, length);
    }
    fn create(&self, length: usize) {
        SharedTable::create(self, length);
    }
}

type Hook = Option<unsafe extern "C-unwind" fn()>;

struct Installed {
    table: &'static dyn Create,
    length: usize,
    previous_request: Hook,
    previous_startup: Hook,
}

static INSTALLED: OnceLock<Installed> = OnceLock::new();

/// Has the table made when the server allocates its shared memory. To be called once, while libraries are preloaded.
pub(crate) fn install<H, R>(table: &'static SharedTable<H, R>, length: usize)
where
    H: Copy + Default + Send + 'static,
    R: Copy + Default + Send + 'static,
{
    // SAFETY: hooks are plain pointers, and only this process exists yet.
    unsafe {
        let installed = Installed {
            table,
            length,
            previous_request: pg_sys::shmem_request_hook,
            previous_startup: pg_sys::shmem_startup_hook,
        };
        if INSTALLED.set(installed).is_ok() {
            pg_sys::shmem_request_hook = Some(request_hook);
            pg_sys::shmem_startup_hook = Some(startup_hook);
        }
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn request_hook() {
    let Some(installed) = INSTALLED.get() else { return };
    if let Some(previous) = installed.previous_request {
        // SAFETY: the hook that was there before ours, called as PostgreSQL would.
        unsafe { previous() }
    }
    installed.table.request(installed.length);
}

#[pg_guard]
unsafe extern "C-unwind" fn startup_hook() {
    let Some(installed) = INSTALLED.get() else { return };
    if let Some(previous) = installed.previous_startup {
        // SAFETY: the hook that was there before ours, called as PostgreSQL would.
        unsafe { previous() }
    }
    installed.table.create(installed.length);
}

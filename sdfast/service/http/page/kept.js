"use strict";
// What the browser keeps: runs with their pictures in IndexedDB, small words in its storages. Where
// it keeps nothing (private windows may not), the page works without.

const MOST_RUNS = 60;
const MOST_BYTES = 96 * 2 ** 20;

function remembered(storage, name) {
  try { return storage.getItem(`sdfast.${name}`); } catch { return null; }
}

function remember(storage, name, value) {
  try { storage.setItem(`sdfast.${name}`, value); } catch { /* for this page alone, then */ }
}

const runs = {
  open() {
    this.opened ??= new Promise((resolve, reject) => {
      const request = indexedDB.open("sdfast", 1);
      request.onupgradeneeded = () => request.result.createObjectStore("runs", { keyPath: "id" });
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
    return this.opened;
  },

  async doing(mode, what) {
    try {
      const database = await this.open();
      return await new Promise((resolve, reject) => {
        const transaction = database.transaction("runs", mode);
        const request = what(transaction.objectStore("runs"));
        transaction.oncomplete = () => resolve(request.result);
        transaction.onabort = () => reject(transaction.error);
      });
    } catch (error) {
      console.info("not kept:", error?.message);
      return null;
    }
  },

  /** All of them, the newest first. */
  async all() {
    const found = (await this.doing("readonly", (store) => store.getAll())) ?? [];
    return found.sort((a, b) => b.when - a.when);
  },

  put(run) { return this.doing("readwrite", (store) => store.put(run)); },
  remove(run) { return this.doing("readwrite", (store) => store.delete(run.id)); },
};

function bytesOf(run) {
  const blobs = [run.thumb, run.start, run.mask, ...run.pictures.map((one) => one.blob)];
  return blobs.reduce((sum, blob) => sum + (blob?.size ?? 0), 0);
}

/** Those of the newest runs that are kept, and those that are too many. */
function bounded(list) {
  let bytes = 0;
  const at = list.findIndex((run, k) => {
    bytes += bytesOf(run);
    return k > 0 && (k >= MOST_RUNS || bytes > MOST_BYTES);
  });
  return at < 0 ? [list, []] : [list.slice(0, at), list.slice(at)];
}

const urls = new Map(); // blob → its address in this page

function urlOf(blob) {
  if (!urls.has(blob)) urls.set(blob, URL.createObjectURL(blob));
  return urls.get(blob);
}

function release(run) {
  for (const blob of [run.thumb, run.start, run.mask, ...run.pictures.map((one) => one.blob)]) {
    if (urls.has(blob)) URL.revokeObjectURL(urls.get(blob));
    urls.delete(blob);
  }
}

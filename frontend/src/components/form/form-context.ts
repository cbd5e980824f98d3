"use client";
import { createContext, useContext } from "react";
import type { Problems } from "@/hooks/use-validation";
import { at, type Json, same, type Tree } from "@/lib/json";

/** The state that all fields of a form share. */
export interface FormState {
  whole: Tree;
  base: Tree;
  problems: Problems;
  candidates: Record<string, string[]>;
  set: (path: readonly string[], value: Json | undefined) => void;
}

export const FormContext = createContext<FormState | null>(null);

export function useForm(): FormState {
  const state = useContext(FormContext);
  if (!state) throw new Error("useForm must be called inside a FormContext.");
  return state;
}

export function useValue(path: readonly string[], initial: Json | undefined) {
  const { whole, base } = useForm();
  const value = at(whole, path) ?? initial;
  const before = at(base, path) ?? initial;
  return { value, before, isChanged: !same(value ?? null, before ?? null) };
}

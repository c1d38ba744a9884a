"""Mutation testing of the modules that numbers come from: do the tests notice a small fault?"""

"""DomainBed's old import paths (`domainbed.lib.misc` and others), for classes written for it; see README.md."""
